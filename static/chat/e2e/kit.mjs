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

/** Waits until two devices show the same, and gives it. */
export async function same(one, other) {
  let shown = [];
  try {
    await until('both show the same', async () => {
      shown = await Promise.all([one.outline(), other.outline()]);
      return JSON.stringify(shown[0]) === JSON.stringify(shown[1]);
    }, 10_000);
  } catch {
    assert.deepEqual(shown[0], shown[1]);
  }
  return shown[0];
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

  /** Choose the kind of the next run. */
  async choose(kind) {
    await this.at('kind').click();
    await this.page.getByRole('menuitemradio', { name: new RegExp(`^${kind}`) }).click();
    await this.at('kind-chip').waitFor();
  }

  /** Give a run or a conversation out by a menu's entry, and take what the browser saves. */
  async download(menu, entry) {
    const saved = this.page.waitForEvent('download', { timeout: 60_000 });
    await this.at(menu).last().click();
    await this.page.getByRole('menuitem', { name: entry }).click();
    return saved;
  }

  /** What the conversation shows, without what a moment changes: who said what on which side, plans, calls, lines. */
  outline() {
    return this.page.evaluate(() => {
      const words = (element) => (element?.textContent ?? '').replace(/\s+/g, ' ').trim();
      return [...document.querySelectorAll('[data-testid="message"]')].map((message) => ({
        role: message.dataset.role,
        status: message.dataset.status ?? '',
        said: message.dataset.role === 'user' ? words(message) : '',
        plan: [...message.querySelectorAll('[data-testid="plan-step"]')].map((step) => `${words(step.querySelector('.title'))} ${step.dataset.status}`),
        speeches: [...message.querySelectorAll('[data-testid="speech"]')].map((speech) => [speech.dataset.agent, speech.dataset.side ?? '', words(speech.querySelector('.markdown'))].join(' | ')),
        lines: [...message.querySelectorAll('[data-testid="handover"], [data-testid="agent-line"]')].map(words),
        calls: [...message.querySelectorAll('[data-testid="tool-card"]')].map((card) => `${card.dataset.agent} ${card.dataset.name} ${card.dataset.status}`),
        beside: message.querySelectorAll('[data-testid="beside"]').length,
      }));
    });
  }

  /** Load the page anew; it has to show what another device shows. */
  async reload(other) {
    await this.page.reload();
    await this.at('message').first().waitFor();
    await same(this, other);
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
