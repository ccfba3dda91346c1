/**
 * A question that a tool asks, on two devices, over a restart of the hub.
 *
 *   node devices.mjs HUB_URL OUT_DIR CHROMIUM
 *
 * Says `restart` when the hub is to be restarted, and waits for a line on standard input.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Device, heard, launch, until } from './kit.mjs';

const [hubUrl, outDir, chromium] = process.argv.slice(2);
const browser = await launch(chromium);

try {
  const desk = await Device.open(browser, hubUrl);
  const form = (device) => device.page.locator('[data-testid="ask-card"][data-kind="form"]');
  const ask = async () => {
    await desk.send('call everything__trigger-elicitation-request {}');
    await form(desk).waitFor({ timeout: 30_000 });
  };

  await ask();
  const phone = await Device.open(browser, desk.page.url(), { phone: true, dark: true });
  await form(phone).waitFor();
  await phone.page.screenshot({ path: join(outDir, 'ask-phone.png') });
  await form(phone).locator('input[type="text"]').first().fill('Grace');
  await form(phone).getByTestId('ask-accept').click();
  await until('it is gone on the desktop', async () => (await form(desk).count()) === 0);
  await until('the call is answered', async () => (await desk.card('trigger-elicitation-request', 'everything').getAttribute('data-status')) === 'ok');
  await desk.idle();
  console.log('ok: asked on both, answered on the phone, gone on the desktop');

  await ask();
  await form(phone).waitFor();
  console.log('restart');
  assert.equal(await heard(), 'restarted');
  const back = (device) => until('the page is connected again', async () => (await device.at('connection').count()) === 0 || (await device.at('connection').getAttribute('data-status')) === 'open', 40_000);
  await Promise.all([back(desk), back(phone)]);
  for (const device of [desk, phone]) await form(device).waitFor({ timeout: 20_000 });
  await desk.page.screenshot({ path: join(outDir, 'ask-after-restart.png') });
  console.log('ok: it is still there when the hub was restarted');

  await form(phone).locator('input[type="text"]').first().fill('Grace');
  await form(phone).getByTestId('ask-accept').click();
  await until('it is gone on the desktop', async () => (await form(desk).count()) === 0);
  await desk.idle(30_000);
  assert.equal(await desk.card('trigger-elicitation-request', 'everything').getAttribute('data-status'), 'lost');
  console.log('ok: answered on the phone; what the hub cannot know is told as lost');
  console.log('done');
} finally {
  await browser.close();
}
process.exit(0);
