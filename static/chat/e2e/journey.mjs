/**
 * One journey through the chat page on a real Chromium against a real hub: each act is done and then asserted.
 *
 *   node journey.mjs HUB_URL OUT_DIR [CHROMIUM]
 *
 * The page is reached through a small TCP relay, so that the line can be cut and mended. Pictures go to OUT_DIR.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [hubUrl, outDir, executablePath = '/usr/bin/chromium'] = process.argv.slice(2);
const hub = new URL(hubUrl);
await mkdir(outDir, { recursive: true });

/** A picture of two by two pixels. */
const DOT = 'iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGPgzosHIgYIBQAWXgNhs3pCsQAAAABJRU5ErkJggg==';

/** A line that can be cut: it passes bytes to the hub while it is up. */
class Line {
  #up = true;
  #sockets = new Set();
  #server = createServer((socket) => this.#join(socket));

  async listen() {
    await new Promise((done) => this.#server.listen(0, '127.0.0.1', done));
    return `http://127.0.0.1:${this.#server.address().port}/`;
  }
  #join(socket) {
    socket.on('error', () => {});
    if (!this.#up) return socket.destroy();
    const hubSide = connect(Number(hub.port), hub.hostname);
    hubSide.on('error', () => socket.destroy());
    socket.on('close', () => hubSide.destroy());
    hubSide.on('close', () => socket.destroy());
    socket.pipe(hubSide).pipe(socket);
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
  }
  cut() {
    this.#up = false;
    for (const socket of this.#sockets) socket.destroy();
  }
  mend() {
    this.#up = true;
  }
  close() {
    this.cut();
    this.#server.close();
  }
}

async function rpc(method, params = {}) {
  const response = await fetch(new URL(`/rpc/${method}`, hub), {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(params),
  });
  const body = await response.json();
  assert.ok(response.ok, `${method}: ${JSON.stringify(body)}`);
  return body;
}

/** Asks again and again until something holds; every wait is bounded. */
async function until(what, check, ms = 15_000) {
  const end = Date.now() + ms;
  let last;
  while (Date.now() < end) {
    last = await check();
    if (last) return last;
    await new Promise((done) => setTimeout(done, 40));
  }
  throw new Error(`never happened: ${what}`);
}

const line = new Line();
const address = await line.listen();
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const faults = [];
let cutting = false;

try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 }, colorScheme: 'light' });
  page.on('pageerror', (error) => faults.push(`page error: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error' && !cutting) faults.push(`console: ${message.text()}`);
  });
  page.on('request', (request) => {
    if (![address, 'data:', `blob:${address}`].some((own) => request.url().startsWith(own))) faults.push(`remote request: ${request.url()}`);
  });

  const at = (id) => page.getByTestId(id);
  const reply = () => page.locator('[data-testid="message"][data-role="assistant"]').last();
  const replyText = async () => (await reply().count()) ? ((await reply().innerText()) ?? '') : '';
  const send = async (text) => {
    await at('composer').fill(text);
    await page.keyboard.press('Enter');
  };
  const idle = () => until('the run ends', async () => (await at('stop').count()) === 0 && (await at('send').count()) > 0);
  const newChat = async () => {
    await page.keyboard.press('Control+Shift+KeyO');
    await until('an empty chat', async () => (await page.locator('[data-testid="message"]').count()) === 0);
  };
  /** The text of the newest reply as the hub has it. */
  const kept = async () => {
    const conv = new URL(page.url()).hash.split('/').pop();
    const { snap } = await rpc('conversation.get', { conv });
    const last = snap.messages.filter((m) => m.role === 'assistant').at(-1);
    return { snap, text: last.parts.filter((p) => p.kind === 'text').map((p) => p.text).join('') };
  };
  const letters = (text) => text.replace(/[^\p{L}\p{N}]/gu, '');

  await page.goto(address);
  await at('composer').waitFor();
  await at('demo-label').waitFor();
  console.log('ok: the page is there and says that the model is a demo');

  await send('Show me markdown');
  const seen = new Set();
  await until('the reply grows', async () => {
    const text = await replyText();
    if (text) seen.add(text.length);
    return seen.size >= 5;
  });
  await idle();
  assert.ok((await reply().locator('table').count()) >= 1, 'the table is rendered');
  assert.ok((await reply().locator('pre code').count()) >= 2, 'code is rendered');
  console.log(`ok: a reply streams (${seen.size} lengths seen on the way)`);

  await newChat();
  await send('Count down from 4');
  const values = new Set();
  await until('the bar moves', async () => {
    const bar = at('tool-progress');
    if (await bar.count()) values.add(await bar.first().getAttribute('aria-valuenow', { timeout: 1000 }).catch(() => null));
    return values.size >= 4;
  });
  console.log(`ok: the countdown's bar moves (${[...values].filter(Boolean).join(', ')})`);

  await at('live-open').click();
  await at('live-temperature').fill('0.3');
  await at('live-temperature').press('Enter');
  const applied = await until('the panel names the step', async () => {
    const text = (await at('live-panel').innerText()).match(/applied at step (\d+)/i);
    return text?.[1];
  });
  await idle();
  const patched = await kept();
  const run = Object.values(patched.snap.runs).at(-1);
  assert.equal(run.config.temperature, 0.3);
  assert.equal(String(run.applied.step), applied);
  await page.screenshot({ path: join(outDir, 'live-desktop-light.png') });
  await at('live-close').click();
  console.log(`ok: temperature was patched in mid-run and applied at step ${applied}`);

  await newChat();
  await send('note: buy oat milk');
  await idle();
  await send('delete note last');
  await at('ask-card').waitFor();
  await page.reload();
  await at('ask-card').waitFor();
  const cards = await page.locator('[data-testid="tool-card"]').count();
  assert.ok(cards >= 1, 'tool cards are there after the reload');
  await page.screenshot({ path: join(outDir, 'ask-desktop-light.png') });
  await at('ask-allow_once').click();
  await until('the card goes', async () => (await at('ask-card').count()) === 0);
  await idle();
  const deleted = Object.values((await kept()).snap.tools).filter((t) => t.name === 'note_delete');
  assert.deepEqual(deleted.map((t) => t.status), ['ok']);
  console.log('ok: an approval card appears, survives a reload, and is answered');

  await newChat();
  await send('Tell me something long');
  await until('text comes', async () => (await replyText()).length > 120);
  cutting = true;
  const before = await replyText();
  line.cut();
  await at('connection').waitFor();
  await page.screenshot({ path: join(outDir, 'offline-desktop-light.png') });
  line.mend();
  await until('the line is back', async () => (await at('connection').count()) === 0, 40_000);
  cutting = false;
  await idle();
  const whole = await kept();
  assert.ok(letters(await replyText()).startsWith(letters(before).slice(0, 80)), 'nothing that was shown is gone');
  assert.ok(letters(await replyText()).includes(letters(whole.text).slice(0, 400)), 'the reply is complete');
  assert.ok(letters(await replyText()).includes(letters(whole.text).slice(-200)), 'to its end, once');
  assert.equal(letters(await replyText()).split(letters(whole.text).slice(-60)).length, 2, 'nothing is repeated');
  console.log('ok: the network is cut and comes back, and the reply is whole');

  await newChat();
  await send('Tell me something long');
  await until('text comes', async () => (await replyText()).length > 150);
  assert.equal(await at('stop').count(), 1);
  const shown = letters(await replyText());
  await page.reload();
  await until('the text is back', async () => letters(await replyText()).startsWith(shown.slice(0, 100)));
  assert.equal(await at('stop').count(), 1, 'Stop is there as it was');
  const length = (await replyText()).length;
  await until('it goes on', async () => (await replyText()).length > length);
  await at('stop').click();
  await idle();
  const stopped = await kept();
  assert.equal(Object.values(stopped.snap.runs).at(-1).status, 'cancelled');
  console.log('ok: the page is reloaded in mid-reply: text and Stop are as they were; Stop stops');

  await newChat();
  await at('file-input').setInputFiles([
    { name: 'dot.png', mimeType: 'image/png', buffer: Buffer.from(DOT, 'base64') },
    { name: 'list.txt', mimeType: 'text/plain', buffer: Buffer.from('milk') },
  ]);
  await until('both files are there', async () => (await page.locator('[data-testid="file-chip"][data-state="there"]').count()) === 2);
  assert.match(await at('file-chip').last().innerText(), /list\.txt\s+4 B/);
  await page.screenshot({ path: join(outDir, 'files-desktop-light.png') });
  await send('Hello with two files');
  await until('the chat has its address', () => page.url().includes('#/c/'));
  await idle();
  await page.reload();
  const said = page.locator('[data-testid="message"][data-role="user"]').last();
  await until('the image is drawn', () => said.locator('img[alt="dot.png"]').evaluate((image) => image.naturalWidth === 2).catch(() => false));
  const [saved] = await Promise.all([page.waitForEvent('download'), said.getByTestId('media').last().click()]);
  assert.equal(saved.suggestedFilename(), 'list.txt');
  assert.equal(await readFile(await saved.path(), 'utf8'), 'milk');
  assert.equal(await at('file-chip').count(), 0, 'what was sent is no draft any more');
  console.log('ok: files are attached and sent; after a reload the image is seen and the file can be had');

  await newChat();
  await page.keyboard.press('Control+Shift+KeyM');
  await at('model-search').waitFor();
  await page.keyboard.type('demo');
  const chosen = await at('model-option').first().getAttribute('data-model');
  assert.match(chosen, /demo/);
  await page.keyboard.press('Enter');
  await at('config-chip').waitFor();
  assert.equal(await at('model-search').count(), 0, 'the picker is closed');
  assert.ok(await at('composer').evaluate((field) => field === document.activeElement), 'the focus is back');
  await send('Hello');
  await until('the chat has its address', () => page.url().includes('#/c/'));
  await idle();
  const picked = await kept();
  assert.equal(Object.values(picked.snap.runs).at(-1).config.model, chosen);
  console.log(`ok: a model is picked by the keys (${chosen}) and answers`);

  for (const [size, width, height] of [['desktop', 1280, 800], ['phone', 390, 844]]) {
    for (const scheme of ['light', 'dark']) {
      const context = await browser.newContext({
        viewport: { width, height }, colorScheme: scheme, hasTouch: size === 'phone', isMobile: size === 'phone', deviceScaleFactor: 2,
      });
      const view = await context.newPage();
      await view.goto(address);
      await view.getByTestId('composer').waitFor();
      await view.screenshot({ path: join(outDir, `empty-${size}-${scheme}.png`) });
      await view.getByTestId('composer').fill('What time is it in Tokyo, and what is 20 degC in degF? Use two tools');
      await view.getByTestId('send').click();
      await until('an answer', async () => (await view.getByTestId('stop').count()) === 0 && (await view.getByTestId('message').count()) > 1);
      await view.getByTestId('composer').fill('Show me markdown');
      await view.getByTestId('send').click();
      await until('an answer', async () => (await view.getByTestId('stop').count()) === 0 && (await view.locator('table').count()) > 0);
      await view.getByTestId('composer').fill('Count down from 20');
      await view.getByTestId('send').click();
      await until('a bar', async () => (await view.getByTestId('tool-progress').count()) > 0);
      if (size === 'desktop') await view.getByTestId('live-open').click();
      await view.waitForTimeout(1500);
      await view.screenshot({ path: join(outDir, `chat-${size}-${scheme}.png`) });
      const wide = await view.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
      assert.ok(!wide, `${size}: nothing sticks out sideways`);
      await view.getByTestId('stop').click();
      await context.close();
    }
  }
  console.log(`ok: pictures in four forms`);
  assert.deepEqual(faults, []);
  console.log('ok: no error in the page, no remote request');
} finally {
  await browser.close();
  line.close();
}
