/**
 * Tools of MCP servers that others wrote, each used through the chat page.
 *
 *   node tools.mjs HUB_URL OUT_DIR CHROMIUM FOLDER HTTP_URL
 *
 * The hub has the connectors `everything`, `files` (on FOLDER), `clock` and `git` (FOLDER is a repository);
 * HTTP_URL is another `everything`, connected to here. The model calls what it is told to.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Device, launch, until } from './kit.mjs';

const [hubUrl, outDir, chromium, folder, httpUrl] = process.argv.slice(2);
const browser = await launch(chromium);

try {
  const desk = await Device.open(browser, hubUrl);
  const { page } = desk;
  const connector = (id) => page.locator(`[data-testid="connector"][data-id="${id}"]`);
  const ready = (id) => until(`${id} is ready`, async () => (await connector(id).count()) && (await connector(id).getAttribute('data-status')) === 'ready');

  await desk.send('/connectors');
  await desk.at('connectors').waitFor();
  for (const id of ['everything', 'files', 'clock', 'git']) await ready(id);
  await desk.at('connect-open').click();
  await desk.at('connect-url').fill(httpUrl);
  await desk.at('connect-name').fill('remote');
  await desk.at('connect-private').check();
  await desk.at('connect').click();
  await ready('remote');
  await page.screenshot({ path: join(outDir, 'connectors.png') });
  console.log('ok: four servers are ready, and a fifth is connected to by its address');

  await connector('everything').getByTestId('connector-toggle').click();
  // Of these four the server tells once it knows what its client can do, by a change of its list.
  const late = ['get-roots-list', 'trigger-elicitation-request', 'trigger-sampling-request', 'trigger-url-elicitation'];
  for (const name of late) await page.locator(`[data-testid="connector-tool"][data-key="everything/${name}"]`).waitFor();
  console.log('ok: tools that came by a change of the list are there');
  await page.keyboard.press('Escape');

  let card = await desk.call('everything', 'echo', { message: 'hello there' });
  assert.match(await card.innerText(), /Echo: hello there/);
  card = await desk.call('remote', 'echo', { message: 'from afar' });
  assert.match(await card.innerText(), /Echo: from afar/);
  assert.equal(await card.getAttribute('data-connector'), 'remote');
  assert.match(await card.innerText(), /\(remote\)/);
  console.log('ok: two servers with the same tools are told apart');

  for (const id of ['everything', 'remote']) {
    const seen = new Set();
    await desk.call(id, 'trigger-long-running-operation', { duration: 2, steps: 5 }, {
      during: () => until('the bar moves', async () => {
        const bar = desk.at('tool-progress');
        if (await bar.count()) seen.add(await bar.first().getAttribute('aria-valuenow', { timeout: 1000 }).catch(() => null));
        return seen.size >= 3;
      }),
    });
  }
  console.log('ok: progress moves the bar, over standard input and over HTTP');

  card = await desk.call('everything', 'get-structured-content', { location: 'Chicago' });
  assert.match(await card.innerText(), /temperature/);
  card = await desk.call('everything', 'get-tiny-image');
  await until('the image is shown', () => page.evaluate(() => [...document.querySelectorAll('img')].some((i) => i.src.startsWith('blob:') && i.naturalWidth > 1)));
  card = await desk.call('everything', 'get-resource-links', { count: 3 });
  assert.match(await card.innerText(), /demo:\/\/resource/);
  card = await desk.call('everything', 'get-resource-reference', { resourceType: 'Text', resourceId: 1 });
  assert.match(await card.innerText(), /resource/i);
  await page.screenshot({ path: join(outDir, 'cards.png') });
  console.log('ok: structured results, images, links and resources are shown');

  card = await desk.call('everything', 'get-roots-list');
  assert.match(await card.innerText(), new RegExp(folder.split('/').pop()));
  console.log('ok: the server knows its roots');

  for (const id of ['everything', 'remote']) {
    card = await desk.call(id, 'trigger-elicitation-request', {}, {
      during: async () => {
        const ask = page.locator('[data-testid="ask-card"][data-kind="form"]');
        await ask.waitFor();
        await ask.locator('input[type="text"]').first().fill('Ada');
        await page.screenshot({ path: join(outDir, `form-${id}.png`) });
        await ask.getByTestId('ask-accept').click();
      },
    });
    assert.match(await card.innerText(), /Ada/);
  }
  console.log('ok: a form that a server asks for is filled in');

  card = await desk.call('everything', 'trigger-url-elicitation', { url: 'https://example.org/sign', message: 'Sign, please' }, {
    during: async () => {
      const ask = page.locator('[data-testid="ask-card"][data-kind="url"]');
      await ask.waitFor();
      assert.match(await ask.innerText(), /example\.org/);
      await ask.getByTestId('ask-accept').click();
    },
  });
  console.log('ok: an address that a server asks to visit is shown with its host');

  card = await desk.call('everything', 'trigger-sampling-request', { prompt: 'Say something', maxTokens: 20 }, {
    during: async () => {
      await page.locator('[data-testid="ask-card"]').waitFor();
      await desk.at('ask-messages').waitFor();
      await page.screenshot({ path: join(outDir, 'sampling.png') });
      await desk.at('ask-allow_once').click();
    },
  });
  assert.match(await card.innerText(), /Say something/);
  console.log('ok: a server asks the model, once that is allowed');

  await desk.newChat();
  await desk.at('composer').fill('/simple-prompt');
  await page.getByRole('option').first().waitFor();
  await page.keyboard.press('Enter');
  await until('the prompt is in the composer', async () => /prompt/i.test(await desk.at('composer').inputValue()));
  await desk.at('composer').fill('');
  console.log('ok: a prompt of a server fills the composer');

  await desk.newChat();
  card = await desk.call('files', 'write_file', { path: join(folder, 'note.txt'), content: 'written by a tool' }, {
    during: async () => {
      await desk.at('ask-allow_once').waitFor();
      await page.screenshot({ path: join(outDir, 'approval.png') });
      await desk.at('ask-allow_once').click();
    },
  });
  assert.equal(await readFile(join(folder, 'note.txt'), 'utf-8'), 'written by a tool');
  card = await desk.call('files', 'read_text_file', { path: join(folder, 'note.txt') });
  assert.match(await card.innerText(), /written by a tool/);
  console.log('ok: a file is written, once that is allowed, and read');

  card = await desk.call('clock', 'convert_time', { source_timezone: 'Europe/Berlin', time: '12:00', target_timezone: 'Asia/Tokyo' });
  assert.match(await card.innerText(), /Asia\/Tokyo/);
  card = await desk.call('git', 'git_log', { repo_path: folder, max_count: 3 });
  assert.match(await card.innerText(), /first of all/);
  card = await desk.call('git', 'git_reset', { repo_path: folder }, {
    status: 'denied', during: () => desk.at('ask-deny').click(),
  });
  console.log('ok: the clock and the repository answer, and what is denied does not run');

  desk.check();
  console.log('done');
} catch (error) {
  for (const context of browser.contexts()) await context.pages()[0]?.screenshot({ path: join(outDir, 'failed.png') });
  throw error;
} finally {
  await browser.close();
}
