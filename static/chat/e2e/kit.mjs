/** What the journeys through the chat page share: a browser, bounded waits, a page that tells of its faults. */
import assert from 'node:assert/strict';
import { chromium, devices } from 'playwright-core';

const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const PHONE = devices['Pixel 7'];

/** Asks again and again until something holds; every wait is bounded. */
export async function until(what, check, ms = 20_000) {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    const last = await check();
    if (last) return last;
    await new Promise((done) => setTimeout(done, 40));
  }
  throw new Error(`never happened: ${what}`);
}

/** A line from whoever started this program. */
export async function heard() {
  for await (const chunk of process.stdin) return String(chunk).trim();
  return '';
}

export const launch = (executablePath) => chromium.launch({ executablePath, args: ARGS });

/** One device with the chat page open: a desktop, or a phone. */
export class Device {
  faults = [];

  static async open(browser, address, { phone = false, dark = false } = {}) {
    const device = new Device();
    const size = phone ? { ...PHONE, defaultBrowserType: undefined } : { viewport: { width: 1280, height: 900 } };
    const context = await browser.newContext({ ...size, colorScheme: dark ? 'dark' : 'light', reducedMotion: 'reduce' });
    device.page = await context.newPage();
    device.page.on('pageerror', (error) => device.faults.push(`page error: ${error.message}`));
    await device.page.goto(address);
    await device.at('composer').waitFor();
    return device;
  }

  at(id) {
    return this.page.getByTestId(id);
  }

  async send(text) {
    await this.at('composer').fill(text);
    await this.at('send').click();
  }

  async idle(ms) {
    await until('the run ends', async () => (await this.at('stop').count()) === 0, ms);
  }

  async newChat() {
    await this.page.keyboard.press('Control+Shift+KeyO');
    await until('an empty chat', async () => (await this.page.locator('[data-testid="message"]').count()) === 0);
  }

  card(name, connector) {
    const of = connector === undefined ? '' : `[data-connector="${connector}"]`;
    return this.page.locator(`[data-testid="tool-card"][data-name="${name}"]${of}`).last();
  }

  /** Has the model call a tool that it has not called before, and gives its card once the run is over. */
  async call(connector, name, args = {}, { status = 'ok', during = async () => {} } = {}) {
    await this.send(`call ${connector}__${name} ${JSON.stringify(args)}`);
    const card = this.card(name, connector);
    await card.waitFor({ timeout: 20_000 });
    await during(card);
    await until(`${name} is ${status}`, async () => (await card.getAttribute('data-status')) === status);
    await this.idle();
    if ((await card.getAttribute('open')) === null) await card.locator('summary').first().click();
    return card;
  }

  check() {
    assert.deepEqual(this.faults, []);
  }
}
