/**
 * Connectors, tool cards, questions, prompts and resources in the chat page, each done and then asserted.
 *
 *   node connectors.mjs HUB_URL OUT_DIR CHROMIUM
 *
 * The hub has the demo model and the plugin of tests/journeys/workshop. Pictures go to OUT_DIR.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Device, launch, until } from './kit.mjs';

const [hubUrl, outDir, chromium] = process.argv.slice(2);
const browser = await launch(chromium);

async function rpc(method, params = {}) {
  const answer = await fetch(new URL(`/rpc/${method}`, hubUrl), {
    method: 'POST', headers: { 'content-type': 'application/json', 'sag-client': 'chat' }, body: JSON.stringify(params),
  });
  const body = await answer.json();
  assert.ok(answer.ok, `${method}: ${JSON.stringify(body)}`);
  return body;
}

/** Nothing but the hub is asked for anything. */
function watch(device) {
  const own = [hubUrl, 'data:', `blob:${new URL(hubUrl).origin}`];
  device.page.on('request', (request) => {
    if (!own.some((start) => request.url().startsWith(start))) device.faults.push(`remote request: ${request.url()}`);
  });
  device.page.on('console', (message) => {
    if (message.type() === 'error') device.faults.push(`console: ${message.text()}`);
  });
}

/** Has the demo model call a tool of the workshop; gives its card. */
async function use(device, name, args = {}) {
  const before = await device.page.locator(`[data-testid="tool-card"][data-name="${name}"]`).count();
  await device.send(`use workshop__${name} ${JSON.stringify(args)}`);
  await until(`${name} is called`, async () => (await device.page.locator(`[data-testid="tool-card"][data-name="${name}"]`).count()) > before);
  return device.card(name);
}

async function openCard(device, card, status = 'ok') {
  await until(`it is ${status}`, async () => (await card.getAttribute('data-status')) === status);
  await device.idle();
  await card.locator('summary').first().click();
  return card;
}

async function openPanel(device) {
  await device.at('composer').fill('/connectors');
  await device.page.keyboard.press('Enter');
  await device.at('connectors').waitFor();
}

async function isFocusIn(device, id) {
  return device.page.evaluate((testid) => document.activeElement?.closest(`[data-testid="${testid}"]`) !== null, id);
}

try {
  const desk = await Device.open(browser, hubUrl);
  const { page } = desk;
  watch(desk);
  const connector = (id) => page.locator(`[data-testid="connector"][data-id="${id}"]`);
  const tool = (key) => page.locator(`[data-testid="connector-tool"][data-key="${key}"]`);

  // The panel, and what it says of each tool beside what the hub says.
  await page.getByTestId('connectors-open').click();
  await desk.at('connectors').waitFor();
  await until('the connectors are there', async () => (await desk.at('connector').count()) >= 4);
  const states = await desk.at('connector').evaluateAll((rows) => rows.map((row) => `${row.dataset.id} ${row.dataset.status}`));
  assert.deepEqual(states.filter((s) => /attic|cellar|workshop|basics/.test(s)), ['cellar failed', 'attic backoff', 'workshop ready', 'basics ready']);
  assert.match(await connector('cellar').innerText(), /no such cask/);
  await connector('workshop').getByTestId('connector-toggle').click();
  await connector('basics').getByTestId('connector-toggle').click();
  const agree = () => until('the page and the hub agree on every tool', async () => {
    const { tools } = await rpc('tool.list', { client: 'chat' });
    const shown = await desk.at('connector-tool').evaluateAll((rows) => rows.map((row) => `${row.dataset.key} ${row.dataset.policy} ${row.dataset.on}`));
    const told = tools.filter((t) => ['workshop', 'basics'].includes(t.origin)).map((t) => `${t.key} ${t.policy} ${t.enabled}`);
    return shown.length === told.length && shown.every((one) => told.includes(one));
  });
  await agree();
  await page.screenshot({ path: join(outDir, 'connectors-desktop-light.png') });
  await tool('workshop/forge').getByTestId('tool-policy').selectOption('deny');
  await tool('workshop/build').getByTestId('tool-switch').click();
  await connector('workshop').getByTestId('connector-policy').selectOption('ask');
  await until('it is off', async () => (await tool('workshop/build').getAttribute('data-on')) === 'false');
  await agree();
  await connector('workshop').getByTestId('connector-switch').click();
  await until('all are off', async () => (await tool('workshop/show').getAttribute('data-on')) === 'false');
  await tool('workshop/show').getByTestId('tool-switch').click();
  await agree();
  const settings = await rpc('config.get', { scope: 'client:chat' });
  assert.deepEqual(settings.config.tools, {
    workshop: { enabled: false, policy: 'ask' }, 'workshop/forge': { policy: 'deny' }, 'workshop/build': { enabled: false }, 'workshop/show': { enabled: true },
  });
  await connector('workshop').getByTestId('connector-switch').click();
  await connector('workshop').getByTestId('connector-policy').selectOption('');
  await tool('workshop/forge').getByTestId('tool-policy').selectOption('');
  await tool('workshop/build').getByTestId('tool-switch').click();
  await until('nothing is set any more', async () => JSON.stringify((await rpc('config.get', { scope: 'client:chat' })).config.tools) === '{"workshop/show":{"enabled":true}}');
  await agree();
  await desk.at('connectors-search').fill('who is booked');
  await until('one tool is found', async () => (await desk.at('connector-tool').count()) === 1);
  await page.keyboard.press('Escape'); // the first one empties the field
  await page.keyboard.press('Escape');
  await until('the panel is closed', async () => (await desk.at('connectors').count()) === 0);
  console.log('ok: the panel shows connectors and tools, and its switches are those of the hub');

  // What a card shows.
  let card = await openCard(desk, await use(desk, 'show'));
  assert.equal(await card.getByTestId('tool-table').locator('tbody tr').count(), 3);
  await until('the picture is drawn', () => card.locator('img').evaluate((image) => image.naturalWidth === 240).catch(() => false));
  const link = card.getByTestId('tool-link').first().locator('a');
  assert.deepEqual([await link.getAttribute('href'), await link.getAttribute('rel')], ['https://example.org/plan', 'noopener noreferrer nofollow']);
  assert.match(await card.getByTestId('tool-result').innerText(), /week:\s*10/);
  const [saved] = await Promise.all([page.waitForEvent('download'), card.getByTestId('media').filter({ hasText: 'plan.csv' }).click()]);
  assert.equal(await readFile(await saved.path(), 'utf8'), 'person,hours\nAna Berg,24\n');
  await card.getByTestId('tool-link').last().getByRole('button', { name: 'Attach' }).click();
  await until('the resource is attached', async () => /plan\.md/.test((await desk.at('file-chip').count()) ? await desk.at('file-chip').innerText() : ''));
  await desk.at('file-remove').click();
  await page.screenshot({ path: join(outDir, 'card-desktop-light.png') });
  card = await openCard(desk, await use(desk, 'bookings'));
  assert.deepEqual(await card.locator('thead th').allInnerTexts(), ['person', 'project', 'hours', 'from', 'tentative']);
  card = await openCard(desk, await use(desk, 'fail'), 'error');
  assert.equal(await card.getByTestId('tool-error').innerText(), 'The forge is cold.\nLight it first, then try again.');
  card = await openCard(desk, await use(desk, 'big'));
  const [whole] = await Promise.all([page.waitForEvent('download'), card.getByTestId('tool-whole').click()]);
  assert.equal(whole.suggestedFilename(), 'big.json');
  assert.equal(JSON.parse(await readFile(await whole.path(), 'utf8')).lines.length, 40_000);
  console.log('ok: cards show pictures, tables, links, files, data and errors, and give the whole of what is cut');

  card = await use(desk, 'build', { steps: 60, pause_s: 0.05 });
  const seen = new Set();
  await until('output streams', async () => {
    const output = desk.at('tool-output').last();
    if (await output.count()) seen.add((await output.innerText()).length);
    return seen.size >= 5;
  });
  assert.ok(await desk.at('tool-progress').count(), 'a bar is there');
  await openCard(desk, card);
  const output = card.getByTestId('tool-output');
  assert.equal((await output.innerText()).trim().split('\n').length, 60);
  console.log(`ok: output streams while a tool works (${seen.size} lengths seen on the way), and is whole in the end`);

  // Questions. What is edited goes through the form, and what the hub refuses stands at its field.
  await desk.newChat();
  card = await use(desk, 'forge', { item: 'hook', count: 3, finish: { colour: '#ddd' } });
  await desk.at('ask-card').waitFor();
  assert.equal(await desk.at('ask-risk').innerText(), 'dangerous');
  await desk.at('ask-edit').click();
  const field = (name) => desk.at('ask-card').locator(`[data-field="${name}"]`);
  assert.deepEqual([await field('count').inputValue(), await field('colour').inputValue()], ['3', '1']);
  await field('count').fill('500');
  await desk.at('ask-allow_once').click();
  await until('the fault is told', async () => /At most 100/.test(await desk.at('ask-card').innerText()));
  assert.ok(await field('count').evaluate((input) => input === document.activeElement), 'the focus is at the fault');
  await field('count').fill('7');
  await field('marks').fill('north\nsouth');
  await field('count').press('Enter');
  assert.equal(await desk.at('ask-card').count(), 1, 'Enter alone allows nothing');
  await page.keyboard.press('Escape');
  assert.equal(await desk.at('ask-card').count(), 1, 'and Escape ends nothing');
  await field('count').press('Control+Enter');
  await openCard(desk, card);
  assert.match(await card.innerText(), /Made 7 × hook/);
  assert.match(await card.innerText(), /"north",\s*"south"/);
  assert.match(await card.innerText(), /#ddd/);
  console.log('ok: arguments are edited as a form, checked before they are sent, and sent by the keyboard');

  card = await use(desk, 'forge', { item: 'nail', count: 1 });
  await desk.at('ask-edit').click();
  await desk.at('ask-json').click();
  await desk.at('ask-args').fill('{"item": "spoon", "count": 1}');
  await desk.at('ask-allow_always').click();
  await until('the hub refuses it', async () => /spoon/.test((await desk.at('ask-fault').count()) ? await desk.at('ask-fault').innerText() : ''));
  await desk.at('ask-args').fill('{"item": "nail", "count": 2}');
  await desk.at('ask-allow_always').click();
  await openCard(desk, card);
  assert.match(await card.innerText(), /Made 2 × nail/);
  await openCard(desk, await use(desk, 'change'));
  await use(desk, 'forge', { item: 'nail', count: 1 });
  await desk.at('ask-changed').waitFor();
  assert.match(await desk.at('ask-changed').innerText(), /send them to anybody[\s\S]*"recipient"/);
  await page.screenshot({ path: join(outDir, 'ask-changed-desktop-light.png') });
  await desk.at('ask-deny').click();
  await desk.idle();
  await openPanel(desk);
  await desk.at('connectors-shown').getByText('Decisions').click();
  const decision = page.locator('[data-testid="decision"][data-key="workshop/forge"]');
  await decision.waitFor();
  assert.match(await decision.innerText(), /changed since/);
  await decision.getByTestId('decision-revoke').click();
  await until('it is taken back', async () => (await rpc('tool.policy.list')).policies.length === 0 && (await decision.count()) === 0);
  await page.keyboard.press('Escape');
  console.log('ok: what was allowed for good asks again once it has changed, shows how, and is taken back');

  // A form on two devices: its faults, the hub's own, and that it goes everywhere when it is answered on the phone.
  card = await use(desk, 'survey');
  await desk.at('ask-card').waitFor();
  const phone = await Device.open(browser, page.url(), { phone: true, dark: true });
  watch(phone);
  await phone.at('ask-card').waitFor();
  const answer = (name) => phone.at('ask-card').locator(`[data-field="${name}"]`);
  await phone.at('ask-accept').click();
  await until('what lacks is told', async () => (await phone.at('ask-card').getByText('Needed.').count()) === 3);
  assert.ok(await answer('name').evaluate((input) => input === document.activeElement), 'the focus is at the first fault');
  await phone.page.screenshot({ path: join(outDir, 'ask-form-phone-dark.png') });
  await answer('name').fill('Ana Berg');
  await answer('email').fill('ana@example.org');
  await answer('team').selectOption({ label: 'Delivery' });
  await answer('hours').fill('7,5');
  await answer('start').fill('2026-03-02');
  await answer('code').fill('abc');
  await phone.at('ask-card').getByLabel('Monday').check();
  await phone.at('ask-accept').click();
  await until('the pattern is told', async () => (await answer('code').getAttribute('aria-invalid')) === 'true');
  await answer('code').fill('ABC');
  await answer('rooms').fill('North\nNorth');
  await phone.at('ask-accept').click();
  await until("the hub's fault is at its field", async () => (await answer('rooms').getAttribute('aria-invalid')) === 'true');
  await answer('rooms').fill('North\nSouth');
  await phone.at('ask-accept').click();
  await until('it is gone on both', async () => (await desk.at('ask-card').count()) + (await phone.at('ask-card').count()) === 0);
  await desk.idle();
  const { snap } = await rpc('conversation.get', { conv: new URL(page.url()).hash.split('/').pop() });
  const answered = Object.values(snap.tools).findLast((one) => one.name === 'survey').result.data;
  assert.deepEqual(answered, { name: 'Ana Berg', email: 'ana@example.org', team: 'delivery', days: ['mon'], hours: 7.5, start: '2026-03-02', code: 'ABC', rooms: ['North', 'South'], remind: true });
  const wide = await phone.page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
  assert.ok(!wide, 'nothing sticks out sideways on the phone');
  console.log('ok: a form is filled in on the phone, checked there and by the hub, and gone on both devices');

  await use(desk, 'login');
  await desk.at('ask-url').waitFor();
  assert.match(await desk.at('ask-url').innerText(), /https:\/\/login\.example\.org\/authorize/);
  assert.equal(await desk.at('ask-url').locator('a').getAttribute('rel'), 'noopener noreferrer');
  await desk.at('ask-accept').focus();
  await page.keyboard.press('Enter');
  await until('it is answered', async () => (await desk.at('ask-card').count()) === 0);
  await desk.idle();
  card = await use(desk, 'consult');
  await desk.at('ask-messages').waitFor();
  assert.match(await desk.at('ask-messages').innerText(), /You plan a workshop[\s\S]*Which of these tasks is urgent/);
  await page.screenshot({ path: join(outDir, 'ask-sampling-desktop-light.png') });
  await desk.at('ask-allow_once').click();
  await openCard(desk, card);
  assert.match(await card.innerText(), /Which of these tasks is urgent/);
  console.log('ok: an address is opened by a click alone; what a tool asks the model is shown before it is allowed');

  // The composer.
  await desk.newChat();
  await desk.at('composer').pressSequentially('/weekly');
  await desk.at('completion').first().waitFor();
  await page.keyboard.press('Enter');
  await desk.at('fill').waitFor();
  await desk.at('fill-insert').click();
  await until('what lacks is told', async () => /Needed/.test(await desk.at('fill').innerText()));
  await page.keyboard.type('de');
  await until('the connector helps', async () => (await desk.at('fill-offer').allInnerTexts()).join() === 'design,delivery');
  await page.screenshot({ path: join(outDir, 'fill-desktop-light.png') });
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await desk.at('fill').locator('[data-field="style"]').fill('brief');
  await page.keyboard.press('Enter');
  await until('the prompt is in the composer', async () => (await desk.at('composer').inputValue()) === 'Write a brief report on the week of team delivery.');
  assert.ok(await desk.at('composer').evaluate((element) => element === document.activeElement), 'and the focus too');
  await page.keyboard.type(' See @pict');
  await desk.at('completion').first().waitFor();
  await page.keyboard.press('Enter');
  await until('the picture is attached', async () => (await page.locator('[data-testid="file-chip"][data-state="there"]').count()) === 1);
  await page.keyboard.type('@notes');
  await until('the template is offered', async () => /Notes of a team/.test((await desk.at('completion').count()) ? await desk.at('completion').first().innerText() : ''));
  await page.keyboard.press('Enter');
  await desk.at('fill').locator('[data-field="team"]').fill('data');
  await desk.at('fill-insert').click();
  await until('the notes are attached', async () => (await page.locator('[data-testid="file-chip"][data-state="there"]').count()) === 2);
  assert.match(await desk.at('file-chip').last().innerText(), /data\.txt|notes\.txt/);
  await desk.at('send').click();
  await until('the chat has its address', () => page.url().includes('#/c/'));
  await desk.idle();
  assert.equal(await page.locator('[data-testid="message"][data-role="user"]').last().getByTestId('media').count(), 2);
  console.log('ok: prompts are filled in with the help of their connector, and resources attached, templates too');

  await desk.at('live-open').click();
  await desk.at('live-preset').selectOption('planning');
  const conv = new URL(page.url()).hash.split('/').pop();
  await until('the preset is set', async () => (await rpc('config.get', { scope: `conv:${conv}` })).config.system === 'You plan the work of a workshop.');
  await until('and shown', async () => (await desk.at('live-system').inputValue()) === 'You plan the work of a workshop.');
  await until('with its tools', async () => !(await page.locator('[data-testid="live-tool"][data-name="workshop/fail"]').isChecked()));
  await desk.at('live-connectors').click();
  await desk.at('connectors').waitFor();
  assert.ok(await isFocusIn(desk, 'connectors') || await page.evaluate(() => document.activeElement?.closest('dialog') !== null), 'the focus is in the panel');
  await page.keyboard.press('Escape');
  await until('the focus is back', () => isFocusIn(desk, 'live-connectors'));
  await desk.at('live-close').click();
  await desk.newChat();
  await desk.send('/preset planning');
  await until('the chat to come has it', async () => (await desk.at('config-chip').count()) === 3);
  console.log('ok: a preset sets a conversation, and the chat to come');

  for (const [size, isPhone] of [['desktop', false], ['phone', true]]) {
    for (const dark of [false, true]) {
      const device = await Device.open(browser, hubUrl, { phone: isPhone, dark });
      watch(device);
      const name = (what) => join(outDir, `${what}-${size}-${dark ? 'dark' : 'light'}.png`);
      await openPanel(device);
      await device.page.locator('[data-id="workshop"] [data-testid="connector-toggle"]').click();
      await device.page.screenshot({ path: name('panel') });
      await device.page.keyboard.press('Escape');
      const shown = await use(device, 'show');
      await openCard(device, shown);
      await device.page.screenshot({ path: name('result') });
      await use(device, 'forge', { item: 'hook', count: 3 });
      await device.at('ask-edit').click();
      await device.page.screenshot({ path: name('approval') });
      const isWide = await device.page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
      assert.ok(!isWide, `${size}: nothing sticks out sideways`);
      await device.at('ask-deny').click();
      await device.idle();
      device.check();
      await device.page.context().close();
    }
  }
  console.log('ok: pictures in four forms');

  desk.check();
  phone.check();
  console.log('ok: no error in the pages, no remote request');
  console.log('done');
} finally {
  await browser.close();
}
