import { describe, expect, test } from 'vitest';
import { natureOf, newKey } from '../src/calls';
import { RpcError } from '../src/index';
import { resumed, Rig, settle } from './fakes';

test.each([
  ['run.start', 'change'], ['run.get', 'read'], ['message.list', 'read'], ['run.export', 'read'], ['plugin.thing.do', 'change'],
  ['topic.subscribe', 'bound'], ['audio.open', 'bound'], ['auth.refresh', 'bound'],
] as const)('%s is a %s', (method, nature) => expect(natureOf(method)).toBe(nature));

test('keys are 128 bits and never the same', () => {
  const keys = new Set(Array.from({ length: 500 }, newKey));
  expect(keys.size).toBe(500);
  for (const key of keys) expect(key).toMatch(/^[0-9a-f]{32}$/);
});

describe('requests', () => {
  test('made offline wait, and go out in order', async () => {
    const rig = new Rig();
    const first = rig.client.startRun({ input: [{ kind: 'text', text: 'hi' }] });
    const second = rig.client.cancelRun('r1');
    const socket = await rig.open();
    expect(socket.sent.slice(1).map((frame) => frame.method)).toEqual(['run.start', 'run.cancel']);
    socket.deliver([{ id: socket.sent[2].id, result: {} }, { id: socket.sent[1].id, result: { conv: 'c1', run: 'r1' } }]);
    expect(await first).toEqual({ conv: 'c1', run: 'r1' });
    expect(await second).toEqual({});
  });

  test('that change something are sent again with the same key until they are answered', async () => {
    const rig = new Rig();
    await rig.open();
    const started = rig.client.startRun({ input: [] });
    const own = rig.client.request('thing.do', { key: 'mine' });
    const keys = [rig.socket.last('run.start').params.key];
    expect(keys[0]).toMatch(/^[0-9a-f]{32}$/);
    expect(rig.socket.last('thing.do').params.key).toBe('mine');
    for (const secret of ['s2', 's3']) {
      rig.socket.fail();
      await rig.open(resumed(secret));
      expect(rig.socket.calls('run.start')).toHaveLength(1);
      keys.push(rig.socket.last('run.start').params.key);
      expect(rig.socket.last('thing.do').params.key).toBe('mine');
    }
    expect(new Set(keys).size).toBe(1);
    rig.answer('run.start', { conv: 'c1', run: 'r1' });
    rig.answer('thing.do', 7);
    expect((await started).run).toBe('r1');
    expect(await own).toBe(7);
    rig.socket.fail();
    await rig.open(resumed('s4'));
    expect(rig.socket.calls('run.start')).toHaveLength(0);
  });

  test('different changes have different keys', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    void rig.client.startRun({ input: [] });
    void rig.client.startRun({ input: [] });
    const [a, b] = socket.calls('run.start');
    expect(a.params.key).not.toBe(b.params.key);
  });

  test('that read are sent again without a key', async () => {
    const rig = new Rig();
    await rig.open();
    const got = rig.client.request('run.get', { run: 'r1' });
    rig.socket.fail();
    await rig.open(resumed('s2'));
    expect(rig.socket.last('run.get').params).toEqual({ run: 'r1' });
    rig.answer('run.get', { status: 'done' });
    expect(await got).toEqual({ status: 'done' });
  });

  test('bound to a connection fail with it, but wait for one', async () => {
    const rig = new Rig();
    const early = rig.client.request('audio.open', { conv: 'c1' });
    await rig.open();
    rig.answer('audio.open', { stream: 1 });
    expect(await early).toEqual({ stream: 1 });
    const late = rig.client.request('audio.open', { conv: 'c1' }).catch((error) => error);
    rig.socket.fail();
    expect(await late).toMatchObject({ kind: 'client.cut', retry: true });
    await rig.open(resumed('s2'));
    expect(rig.socket.calls('audio.open')).toHaveLength(0);
  });

  test('that fail reject with the kind, the wait and the data', async () => {
    const rig = new Rig();
    await rig.open();
    const patched = rig.client.patchConfig('run:r1', { temperature: 1 }, { rev: 7, apply: 'now' }).catch((error) => error);
    expect(rig.socket.last('config.patch').params).toMatchObject({ scope: 'run:r1', patch: { temperature: 1 }, rev: 7, apply: 'now' });
    rig.refuse('config.patch', 409, { kind: 'config.conflict', retry: false, rev: 9, effective: {} });
    const error = await patched;
    expect(error).toBeInstanceOf(RpcError);
    expect(error).toMatchObject({ code: 409, kind: 'config.conflict', retry: false, data: { rev: 9 } });
    const limited = rig.client.getConfig('conv:c1').catch((error) => error);
    expect(rig.socket.last('config.get').params).toEqual({ scope: 'conv:c1' });
    rig.refuse('config.get', 429, { kind: 'rate', retry: true, after_ms: 50 });
    expect(await limited).toMatchObject({ code: 429, retry: true, afterMs: 50 });
  });

  test('keep within the number that the server takes at a time', async () => {
    const rig = new Rig();
    const socket = await rig.open({ limits: { frame: 1000, inflight: 2, topics: 8 } });
    for (let i = 0; i < 5; i++) void rig.client.request('run.get', { i });
    expect(socket.calls('run.get').map((frame) => frame.params.i)).toEqual([0, 1]);
    rig.answer('run.get', {});
    expect(socket.calls('run.get').map((frame) => frame.params.i)).toEqual([0, 1, 2]);
  });

  test('larger than a frame are refused here and not sent', async () => {
    const rig = new Rig();
    const socket = await rig.open({ limits: { frame: 400, inflight: 2, topics: 8 } });
    const error = await rig.client.request('run.get', { text: 'ü'.repeat(200) }).catch((error) => error);
    expect(error).toMatchObject({ code: 413, kind: 'client.frame' });
    expect(socket.calls('run.get')).toHaveLength(0);
    void rig.client.request('run.get', { text: 'u'.repeat(200) });
    expect(socket.calls('run.get')).toHaveLength(1);
  });

  test('that a proxy finds too large (1009) do not come back for ever', async () => {
    const rig = new Rig();
    await rig.open();
    const large = rig.client.request('thing.do', { text: 'x'.repeat(5000) }).catch((error) => error);
    const small = rig.client.request('thing.do', { text: 'x' });
    rig.socket.fail(1009);
    expect(await large).toMatchObject({ code: 413, kind: 'client.frame' });
    await rig.open(resumed('s2'));
    expect(rig.socket.calls('thing.do')).toHaveLength(1);
    rig.answer('thing.do', 1);
    expect(await small).toBe(1);
  });

  test('that change something wait for the next connection once the server says bye', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    socket.deliver({ method: 'bye', params: { code: 4000, reconnect: true, after_ms: 10 } });
    void rig.client.startRun({ input: [] });
    void rig.client.request('run.get', {});
    expect(socket.calls('run.start')).toHaveLength(0);
    expect(socket.calls('run.get')).toHaveLength(1);
    socket.fail(4000);
    await rig.open(resumed('s2'));
    expect(rig.socket.calls('run.start')).toHaveLength(1);
  });
});

describe('asks, runs and config have their own helpers', () => {
  test('with the params of the protocol', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    void rig.client.answerAsk('a9', 'allow_once', { args: { to: [] } });
    void rig.client.answerAsk('a9', 'deny');
    void rig.client.cancelRun('r1', 'after_step');
    void rig.client.resumeRun('r1');
    const [first, second] = socket.calls('ask.answer');
    expect(first.params).toEqual({ ask: 'a9', choice: 'allow_once', data: { args: { to: [] } }, key: expect.any(String) });
    expect(second.params).toEqual({ ask: 'a9', choice: 'deny', key: expect.any(String) });
    expect(socket.last('run.cancel').params).toEqual({ run: 'r1', mode: 'after_step', key: expect.any(String) });
    expect(socket.last('run.resume').params).toEqual({ run: 'r1', key: expect.any(String) });
  });
});

describe('giving up', () => {
  test('by a signal sends rpc.cancel and frees the caller at once', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    const abort = new AbortController();
    const got = rig.client.request('run.get', {}, { signal: abort.signal }).catch((error) => error);
    abort.abort();
    expect(socket.sent.at(-1)).toEqual({ method: 'rpc.cancel', params: { id: socket.last('run.get').id } });
    expect(await got).toMatchObject({ code: 499, kind: 'client.cancelled' });
    socket.fail();
    await rig.open(resumed('s2'));
    expect(rig.socket.calls('run.get')).toHaveLength(0);
  });

  test('frees a place once the server has answered, not before', async () => {
    const rig = new Rig();
    const socket = await rig.open({ limits: { frame: 1000, inflight: 1, topics: 8 } });
    const abort = new AbortController();
    rig.client.request('run.get', { n: 1 }, { signal: abort.signal }).catch(() => undefined);
    void rig.client.request('run.get', { n: 2 });
    abort.abort();
    expect(socket.calls('run.get')).toHaveLength(1);
    rig.refuse('run.get', 499);
    expect(socket.calls('run.get')).toHaveLength(2);
  });

  test('before it was sent sends nothing at all', async () => {
    const rig = new Rig();
    const abort = new AbortController();
    const got = rig.client.request('run.start', {}, { signal: abort.signal }).catch((error) => error);
    abort.abort();
    expect(await got).toMatchObject({ kind: 'client.cancelled' });
    await expect(rig.client.request('run.start', {}, { signal: abort.signal })).rejects.toMatchObject({ kind: 'client.cancelled' });
    expect((await rig.open()).sent).toHaveLength(1);
  });

  test('by time counts from the call, over cuts', async () => {
    const rig = new Rig();
    await rig.open();
    const got = rig.client.request('run.get', {}, { timeout_ms: 3000 }).catch((error) => error);
    await rig.clock.advance(2000);
    rig.socket.fail();
    await rig.open(resumed('s2'));
    expect(rig.socket.calls('run.get')).toHaveLength(1);
    await rig.clock.advance(1000);
    await settle();
    expect(await got).toMatchObject({ code: 408, kind: 'client.timeout' });
    expect(rig.socket.last('rpc.cancel')).toBeDefined();
  });
});
