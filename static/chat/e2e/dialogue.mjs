/**
 * Two agents talk, watched by a desktop and a phone; a knob of one is turned while the other speaks.
 *
 *   node dialogue.mjs HUB_URL OUT_DIR CHROMIUM [pdf]
 *
 * Says `open turn N` where turn N may go on. With `pdf` the hub can make one.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Device, launch, same, until } from './kit.mjs';

const [hubUrl, outDir, chromium, ...more] = process.argv.slice(2);
const browser = await launch(chromium);
const devices = [];

try {
  const desk = await Device.open(browser, hubUrl);
  devices.push(desk);
  const { page } = desk;
  const bot = (device, id) => device.page.locator(`[data-testid="stage-bot"][data-bot="${id}"]`);
  const speeches = (device) => device.at('speech');
  const turn = (device, n) => until(`turn ${n} has begun`, async () => (await speeches(device).count()) === n);

  await desk.choose('Dialogue');
  await desk.at('kind-open').click();
  const setup = page.locator('[data-testid="setup-bot"][data-bot="b1"]');
  await setup.getByTestId('knob-name').fill('Bob');
  await setup.getByTestId('knob-temperature').fill('0.9');
  await setup.getByTestId('knob-model').click();
  await page.locator('[data-testid="model-option"][data-model="troupe/sage"]').click();
  await page.locator('[data-field="max_turns"]').fill('6');
  await page.screenshot({ path: join(outDir, 'dialogue-setup.png') });
  await page.keyboard.press('Escape');
  assert.match(await desk.at('kind-chip').innerText(), /Ada and Bob, 6 turns/);
  await page.reload();
  await desk.at('kind-chip').waitFor();
  assert.match(await desk.at('kind-chip').innerText(), /Ada and Bob, 6 turns/);
  console.log('ok: a dialogue is set up, and what is set up survives a reload');

  await desk.send('Cities without cars');
  await desk.at('stage').waitFor();
  const phone = await Device.open(browser, page.url(), { phone: true, dark: true });
  devices.push(phone);
  await turn(desk, 3);
  await turn(phone, 3);
  assert.deepEqual(await speeches(desk).evaluateAll((all) => all.map((one) => `${one.dataset.agent} ${one.dataset.side}`)), ['b0 left', 'b1 right', 'b0 left']);
  assert.match(await desk.at('stage-turns').innerText(), /Turn 3 of 6/);
  assert.match(await bot(desk, 'b1').innerText(), /Bob[^]*Sage Large · T 0\.9/);

  await bot(desk, 'b1').click();
  await until('the knobs are those of Bob', async () => (await desk.at('knob-temperature').inputValue()) === '0.9');
  await desk.at('knob-temperature').fill('0.2');
  await desk.at('knob-system').fill('You are Bob. Be brief in this talk.');
  await desk.at('live-apply').click();
  await until('it is told when it holds', async () => /Takes hold at the next turn/.test(await desk.at('live-applied').innerText()));
  await until('the phone has it', async () => /T 0\.2/.test(await bot(phone, 'b1').innerText()));
  await page.screenshot({ path: join(outDir, 'dialogue-knob.png') });
  console.log('ok: a knob of the second agent is turned while the first one speaks');

  await phone.reload(desk);
  await until('the phone is at turn 3', async () => /Turn 3 of 6/.test(await phone.at('stage-turns').innerText()));
  console.log('open turn 3');
  await until('it is told where it took hold', async () => /Applied at step 4/.test(await desk.at('live-applied').innerText()));
  assert.match(await desk.at('live-change').first().innerText(), /Bob: Temperature 0\.2, System prompt changed[^]*applied at step 4/);
  await turn(phone, 5);
  await phone.at('live-open').click();
  assert.match(await phone.at('live-change').first().innerText(), /applied at step 4/);
  await phone.at('live-close').click();
  console.log('ok: it took hold at the next turn, and both devices tell');

  await phone.at('stage-pause').click();
  await until('it will pause', async () => /Pauses after this turn/.test(await desk.at('stage-turns').innerText()));
  console.log('open turn 5');
  for (const device of devices) await until('it is paused', async () => /Paused/.test(await device.at('stage-turns').innerText()));
  await phone.page.screenshot({ path: join(outDir, 'dialogue-phone.png') });
  await desk.send('And the suburbs?');
  await until('the phone has what was said', async () => /And the suburbs/.test(await phone.at('thread').innerText()));
  assert.equal(await speeches(desk).count(), 5);
  await desk.at('go-on').click();
  await Promise.all(devices.map((device) => device.idle()));
  const shown = await same(desk, phone);
  assert.deepEqual(shown.map((turn) => turn.role), ['user', 'assistant', 'user', 'assistant']);
  assert.equal(shown.flatMap((turn) => turn.speeches).length, 6);
  assert.match(shown[3].speeches[0], /^b1 \| right/);
  await page.screenshot({ path: join(outDir, 'dialogue-end.png') });
  console.log('ok: paused on the phone, a word in between, and on it goes');

  await desk.at('reply-menu').last().click();
  await page.getByRole('menuitem', { name: 'Timeline' }).click();
  await desk.at('timeline-picture').waitFor();
  assert.equal(await page.locator('[data-testid="timeline-picture"] [data-kind="step"]').count(), 6);
  assert.equal(await page.locator('[data-testid="timeline-picture"] [data-kind="patch"]').count(), 1);
  await page.screenshot({ path: join(outDir, 'dialogue-timeline.png') });
  await page.keyboard.press('Escape');
  console.log('ok: the timeline has the turns and the patch');

  const text = async (saved) => readFile(await saved.path(), 'utf-8');
  let saved = await desk.download('reply-menu', 'Export as JSON');
  const run = JSON.parse(await text(saved));
  assert.match(saved.suggestedFilename(), /\.json$/);
  assert.equal(run.bots.length, 2);
  saved = await desk.download('more', 'Export as Markdown');
  assert.match(saved.suggestedFilename(), /\.md$/);
  assert.match(await text(saved), /Bob[^]*And the suburbs\?/);
  saved = await desk.download('more', 'Export as HTML');
  assert.match(saved.suggestedFilename(), /\.html$/);
  assert.match(await text(saved), /<html[^]*And the suburbs\?/);
  if (more.includes('pdf')) {
    saved = await desk.download('more', 'Export as PDF');
    assert.match((await readFile(await saved.path())).subarray(0, 5).toString(), /%PDF-/);
  }
  saved = await desk.download('more', 'Export as JSON');
  const file = await saved.path();
  console.log('ok: the run and the conversation are given out');

  const here = page.url();
  await desk.at('import-input').setInputFiles({ name: 'talk.json', mimeType: 'application/json', buffer: await readFile(file) });
  await until('the imported conversation is open', () => page.url() !== here);
  await desk.at('message').first().waitFor();
  const imported = await until('all of it is there', async () => {
    const outline = await desk.outline();
    return outline.length === shown.length && outline;
  });
  assert.deepEqual(imported.map((turn) => turn.speeches), shown.map((turn) => turn.speeches));
  console.log('ok: an export is taken in again');

  for (const device of devices) device.check();
  console.log('done');
} catch (error) {
  for (const [i, device] of devices.entries()) await device.page.screenshot({ path: join(outDir, `failed-${i}.png`) });
  throw error;
} finally {
  await browser.close();
}
process.exit(0);
