/**
 * A triage with hand-overs, and a plan that is mended, each watched by a desktop and a phone that reloads in the middle.
 *
 *   node workflow.mjs HUB_URL OUT_DIR CHROMIUM
 *
 * Says `open WHAT` where somebody may go on.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Device, launch, same, until } from './kit.mjs';

const [hubUrl, outDir, chromium] = process.argv.slice(2);
const browser = await launch(chromium);
const devices = [];

try {
  const desk = await Device.open(browser, hubUrl);
  devices.push(desk);
  const { page } = desk;

  await desk.choose('Triage');
  assert.match(await desk.at('kind-chip').innerText(), /Billing, Shipping and Repairs/);
  await desk.send('Where is the parcel of invoice 17?');
  await desk.at('handover').first().waitFor();
  const phone = await Device.open(browser, page.url(), { phone: true, dark: true });
  devices.push(phone);
  await until('Billing is at work on the phone', async () => (await phone.page.locator('[data-testid="speech"][data-agent="billing"]').count()) === 1);
  await phone.reload(desk);
  console.log('open Billing');
  await Promise.all(devices.map((device) => device.idle()));
  const [, reply] = await same(desk, phone);
  assert.deepEqual(reply.lines, [
    'Triage →hands over to Billing: asks for invoice 17 and where its parcel is',
    'Billing →hands over to Shipping: invoice 17 is paid; where is its parcel?',
  ]);
  assert.deepEqual(reply.calls, ['Billing look_up ok', 'Shipping look_up ok']);
  assert.match(reply.speeches.at(-1), /^shipping \| .*in the van/);
  await page.screenshot({ path: join(outDir, 'triage.png') });
  await phone.page.screenshot({ path: join(outDir, 'triage-phone.png') });
  console.log('ok: handed over, and over again, with names on what is said and called');

  await desk.newChat();
  await desk.choose('Plan');
  await desk.at('kind-open').click();
  await page.locator('[data-field="approve"]').check();
  await page.keyboard.press('Escape');
  await desk.send('Get the team to Vienna on Friday, and back on Saturday');
  await desk.at('ask-card').waitFor();
  await phone.page.goto(page.url());
  await phone.at('ask-card').waitFor();
  const step = (device, id) => device.page.locator(`[data-testid="plan-step"][data-step="${id}"]`);
  const is = (device, id, status) => until(`${id} is ${status}`, async () => (await step(device, id).getAttribute('data-status')) === status);
  assert.equal(await desk.at('plan-step').count(), 5);
  await page.screenshot({ path: join(outDir, 'plan-ask.png') });
  await phone.at('ask-approve').click();
  await until('the question is gone on the desktop', async () => (await desk.at('ask-card').count()) === 0);
  console.log('ok: a plan of five steps, approved on the phone');

  for (const device of devices) for (const id of ['trains', 'rooms']) await is(device, id, 'running');
  for (const device of devices) await until('two lanes side by side', async () => (await device.page.locator('[data-testid="beside"] [data-testid="speech"]').count()) === 2);
  await desk.at('more').click();
  await page.getByRole('menuitem', { name: 'Timeline' }).click();
  await until('two steps go on in the picture', async () => (await page.locator('[data-testid="timeline-picture"] .step.open').count()) === 2);
  await page.screenshot({ path: join(outDir, 'plan-timeline.png') });
  await page.keyboard.press('Escape');
  await phone.reload(desk);
  await page.screenshot({ path: join(outDir, 'plan-beside.png') });
  console.log('ok: two steps at once, the same after a reload');

  console.log('open trains');
  console.log('open rooms');
  for (const device of devices) await is(device, 'cost', 'failed');
  assert.match(await step(phone, 'cost').innerText(), /The rooms have no price/);
  await phone.reload(desk);
  await phone.page.screenshot({ path: join(outDir, 'plan-failed-phone.png') });
  console.log('open revise');
  await desk.at('ask-card').waitFor();
  await until('the plan is a new one', async () => /Estimate the cost/.test(await step(desk, 'cost').innerText()));
  await desk.at('ask-approve').click();
  await Promise.all(devices.map((device) => device.idle()));
  const [, work] = await same(desk, phone);
  assert.deepEqual(work.plan.map((one) => one.split(' ').at(-1)), ['done', 'done', 'done', 'done', 'done']);
  assert.match(await desk.at('plan').innerText(), /5 of 5 done, changed once/);
  assert.ok(work.lines.some((line) => /gave up: The rooms have no price/.test(line)));
  assert.match(await desk.at('message').last().innerText(), /Friday at 9:12/);
  await step(phone, 'trains').locator('summary').click();
  assert.match(await step(phone, 'trains').getByTestId('plan-result').innerText(), /the second is the best/);
  await page.screenshot({ path: join(outDir, 'plan.png') });
  await phone.page.screenshot({ path: join(outDir, 'plan-phone.png') });
  console.log('ok: a step failed, the plan was mended, and all of it is done');

  await phone.at('reply-menu').last().click();
  await phone.page.getByRole('menuitem', { name: 'Timeline' }).click();
  await phone.at('timeline-picture').waitFor();
  await phone.page.screenshot({ path: join(outDir, 'plan-timeline-phone.png') });
  await phone.page.getByRole('radio', { name: 'Table' }).check({ force: true });
  const kinds = await phone.at('timeline-row').evaluateAll((rows) => rows.map((row) => row.dataset.kind));
  const count = (kind) => kinds.filter((one) => one === kind).length;
  assert.deepEqual([count('ask'), count('said'), count('step')], [2, 1, 11]);
  assert.match(await phone.at('timeline-table').innerText(), /Go ahead with this plan\?[^]*Approve/);
  console.log('ok: the timeline has it all, as a picture and as a table');

  for (const device of devices) device.check();
  console.log('done');
} catch (error) {
  for (const [i, device] of devices.entries()) await device.page.screenshot({ path: join(outDir, `failed-${i}.png`) });
  throw error;
} finally {
  await browser.close();
}
process.exit(0);
