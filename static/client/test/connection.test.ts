import { describe, expect, test } from 'vitest';
import { jitter } from '../src/backoff';
import { RpcError, type Status } from '../src/index';
import { resumed, Rig, settle } from './fakes';

describe('hello', () => {
  test('is the first frame and alone until it is answered', async () => {
    const rig = new Rig({ token: () => Promise.resolve('tok'), caps: { ask: ['approval'] } });
    rig.client.topic('hub');
    void rig.client.request('run.get', { run: 'r1' });
    const hello = await rig.greet();
    expect(hello).toMatchObject({
      method: 'hello',
      params: { v: 1, client: { id: 'chat' }, auth: { scheme: 'bearer', token: 'tok' }, caps: { ask: ['approval'] }, topics: { hub: {} } },
    });
    expect(hello.params).not.toHaveProperty('resume');
    expect(rig.socket.protocols).toEqual(['sag.1.json']);
    rig.client.topic('user:me');
    rig.client.wake();
    rig.socket.deliver({ ping: 1 }, { id: 's1', method: 'tool.call', params: { name: 'x' } });
    await settle();
    expect(rig.socket.sent).toHaveLength(1);
    rig.answerHello({ topics: { hub: { t: 1, mode: 'snapshot', gen: 'g', off: 0, head: 0, snap: {} } } });
    expect(rig.client.status).toBe('open');
    expect(rig.client.user?.name).toBe('Ada');
    expect(rig.client.limits?.topics).toBe(128);
    expect(rig.socket.sent.slice(1).map((frame) => frame.method).sort()).toEqual(['run.get', 'topic.subscribe']);
    expect(rig.socket.last('topic.subscribe').params).toEqual({ topic: 'user:me' });
  });

  test('resumes with the newest secret, which is kept once the answer is here', async () => {
    const rig = new Rig();
    await rig.open({ session: { id: 'ses_1', secret: 's1', resumed: false, keep_ms: 1 } });
    expect(rig.storage.value).toEqual({ session: 'ses_1', secret: 's1' });
    rig.socket.fail();
    const second = await rig.greet();
    expect(second.params.resume).toEqual({ session: 'ses_1', secret: 's1' });
    rig.socket.fail();
    expect(rig.storage.value.secret).toBe('s1');
    const third = await rig.greet();
    expect(third.params.resume.secret).toBe('s1');
    rig.answerHello(resumed('s2'));
    expect(rig.storage.value.secret).toBe('s2');
    expect(rig.client.session).toEqual({ id: 'ses_1', resumed: true, keep_ms: 120000 });

    const reloaded = new Rig({ storage: rig.storage as unknown as Storage });
    expect((await reloaded.greet()).params.resume).toEqual({ session: 'ses_1', secret: 's2' });
  });

  test('refused as not authenticated ends the client', async () => {
    const rig = new Rig();
    const waiting = rig.client.request('run.get', {}).catch((error) => error);
    await rig.greet();
    rig.socket.deliver({ id: rig.socket.sent[0].id, error: { code: 401, message: 'who?', data: { kind: 'auth.bad' } } });
    rig.socket.deliver({ method: 'bye', params: { code: 4500, reason: 'auth', reconnect: false } });
    rig.socket.fail(4500);
    expect(rig.client.status).toBe('closed');
    expect(rig.client.lastBye?.code).toBe(4500);
    expect(await waiting).toMatchObject({ code: 401, kind: 'auth.bad' });
    await expect(rig.client.request('run.get', {})).rejects.toMatchObject({ kind: 'client.closed' });
    await rig.clock.advance(120_000);
    expect(rig.sockets).toHaveLength(1);
    rig.client.connect();
    expect(rig.client.status).toBe('connecting');
  });

  test.each([[401, {}, 'closed'], [503, { retry: true, after_ms: 4000 }, 'waiting']] as const)(
    'refused with %i and not closed is given up', async (code, data, status) => {
      const rig = new Rig();
      await rig.greet();
      rig.socket.deliver({ id: rig.socket.sent[0].id, error: { code, message: 'no', data } });
      await rig.clock.advance(2000);
      expect(rig.client.status).toBe(status);
      if (status === 'waiting') expect(rig.client.retryAt! - rig.clock.now()).toBeGreaterThanOrEqual(4000);
    });
});

describe('coming back', () => {
  test.each([
    [1000, true], [1001, true], [1006, true], [1009, true], [1011, true], [1012, true], [4000, true], [4003, true], [4499, true],
    [4500, false], [4505, false], [4999, false], [5000, true],
  ])('after close code %i: %s', async (code, back) => {
    const rig = new Rig();
    (await rig.open()).fail(code);
    expect(rig.client.status).toBe(back ? 'waiting' : 'closed');
    expect(rig.client.retryAt === null).toBe(!back);
  });

  test('not where bye said so, whatever the socket saw', async () => {
    for (const params of [{ code: 4000, reconnect: false }, { code: 4504 }]) {
      const rig = new Rig();
      const socket = await rig.open();
      socket.deliver({ method: 'bye', params });
      socket.fail(1006);
      expect(rig.client.status).toBe('closed');
    }
  });

  test('not before the time that bye named', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    const byes: any[] = [];
    rig.client.on('bye', (bye) => byes.push(bye));
    socket.deliver({ method: 'bye', params: { code: 4000, reason: 'restart', reconnect: true, after_ms: 7000 } });
    socket.fail(4000);
    expect(byes).toEqual([rig.client.lastBye]);
    expect(rig.client.retryAt! - rig.clock.now()).toBeGreaterThanOrEqual(7000);
    expect(rig.client.retryAt! - rig.clock.now()).toBeLessThanOrEqual(7500);
    await rig.clock.advance(6999);
    expect(rig.sockets).toHaveLength(1);
    await rig.clock.advance(501);
    expect(rig.sockets).toHaveLength(2);
  });

  test('with full jitter from 0.5 s up to 30 s', async () => {
    for (const [chance, bounds] of [[0.999999, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]], [0, [0, 0, 0, 0]]] as const) {
      const rig = new Rig();
      rig.clock.chance = chance;
      rig.client.connect();
      for (const bound of bounds) {
        await settle();
        rig.socket.fail();
        const wait = rig.client.retryAt! - rig.clock.now();
        expect(wait).toBeGreaterThanOrEqual(bound * 0.99);
        expect(wait).toBeLessThanOrEqual(bound);
        await rig.clock.advance(wait);
      }
    }
    expect(jitter(2000, 1)).toBe(30_000);
  });

  test('soon after a connection that lasted, later after one that did not', async () => {
    const rig = new Rig();
    rig.clock.chance = 1;
    for (const [lived, wait] of [[0, 500], [0, 1000], [10, 2000], [6000, 500], [6000, 500]] as const) {
      const socket = await rig.open();
      await rig.clock.advance(lived);
      socket.fail();
      expect(rig.client.retryAt! - rig.clock.now()).toBe(wait);
    }
  });

  test('a token that cannot be had, and a socket that cannot be made, are attempts that failed', async () => {
    const bad = new Rig({ token: () => Promise.reject(new Error('no token')) });
    bad.client.connect();
    await settle();
    expect(bad.client.status).toBe('waiting');
    expect(bad.errors[0]!.message).toBe('no token');
    class Broken { constructor() { throw new SyntaxError('bad url'); } }
    const broken = new Rig({ webSocket: Broken as unknown as typeof WebSocket });
    broken.client.connect();
    await settle();
    expect(broken.client.status).toBe('waiting');
  });

  test('close ends everything and leaves no timer', async () => {
    const rig = new Rig({ tools: [{ name: 'x', description: '', input: {}, run: () => new Promise(() => undefined) }] });
    const statuses: Status[] = [];
    rig.client.on('status', (status) => statuses.push(status));
    const socket = await rig.open();
    const handle = rig.client.topic('hub');
    socket.deliver({ id: 's1', method: 'tool.call', params: { name: 'x', deadline_ms: 1000 } });
    rig.client.wake();
    const waiting = rig.client.request('run.start', {}, { timeout_ms: 9000 }).catch((error) => error);
    handle.release();
    rig.client.close();
    expect(await waiting).toBeInstanceOf(RpcError);
    expect(socket.closedWith).toBe(1000);
    expect(statuses).toEqual(['connecting', 'open', 'closed']);
    await rig.clock.advance(10_000);
    expect(rig.clock.pending).toBe(0);
    expect(rig.sockets).toHaveLength(1);
  });

  test('a late frame or close of an old socket changes nothing', async () => {
    const rig = new Rig();
    const old = await rig.open();
    const { onmessage, onclose } = old;
    old.fail();
    const fresh = await rig.open();
    onmessage?.({ data: JSON.stringify({ method: 'bye', params: { code: 4500 } }) });
    onclose?.({ code: 4500 });
    expect(rig.client.status).toBe('open');
    expect(rig.socket).toBe(fresh);
  });
});

describe('heartbeat', () => {
  test('is answered with the same number', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    const beats: any[] = [];
    rig.client.on('heartbeat', (beat) => beats.push(beat));
    socket.deliver({ ping: 1795190000000, heads: {} });
    expect(socket.sent.at(-1)).toEqual({ pong: 1795190000000 });
    expect(beats).toHaveLength(1);
  });

  test('silence for every_ms + timeout_ms reconnects, not a moment sooner', async () => {
    const rig = new Rig();
    const socket = await rig.open({ ping: { every_ms: 2000, timeout_ms: 500 } });
    await rig.clock.advance(2000);
    socket.deliver({ ping: 1 });
    await rig.clock.advance(2499);
    expect(rig.client.status).toBe('open');
    await rig.clock.advance(1);
    expect(rig.client.status).toBe('waiting');
    expect(socket.closedWith).toBe(1000);
  });

  test('a connection that never gets to its hello is given up too', async () => {
    const rig = new Rig();
    rig.client.connect();
    await rig.clock.advance(34_999);
    expect(rig.client.status).toBe('connecting');
    await rig.clock.advance(1);
    expect(rig.client.status).toBe('waiting');
  });
});

describe('wake', () => {
  test('reconnects now when it was waiting', async () => {
    const rig = new Rig();
    (await rig.open()).fail();
    rig.client.wake();
    await settle();
    expect(rig.client.status).toBe('connecting');
    expect(rig.sockets).toHaveLength(2);
    await rig.clock.advance(20_000);
    expect(rig.sockets).toHaveLength(2);
  });

  test('probes an open line and keeps it where anything is heard', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    rig.client.wake();
    rig.client.wake();
    expect(socket.calls('config.get')).toHaveLength(1);
    await rig.clock.advance(4000);
    socket.deliver({ ping: 1 });
    await rig.clock.advance(4000);
    expect(rig.client.status).toBe('open');
    rig.client.wake();
    await rig.clock.advance(5000);
    expect(rig.client.status).toBe('waiting');
  });

  test('does not bring back what was closed', async () => {
    const rig = new Rig();
    (await rig.open()).fail(4500);
    rig.client.wake();
    expect(rig.client.status).toBe('closed');
  });
});

test('a token that expires is refreshed where it comes from a function', async () => {
  let count = 0;
  const rig = new Rig({ token: () => `tok${++count}` });
  const socket = await rig.open();
  socket.deliver({ method: 'auth.expiring', params: { in_ms: 60000 } });
  await settle();
  expect(socket.last('auth.refresh').params).toEqual({ token: 'tok2' });
  const fixed = new Rig({ token: 'tok' });
  const other = await fixed.open();
  other.deliver({ method: 'auth.expiring', params: { in_ms: 60000 } });
  await settle();
  expect(other.calls('auth.refresh')).toHaveLength(0);
});

test('what is not known is ignored, except a request, which gets -32601', async () => {
  const rig = new Rig();
  const socket = await rig.open();
  const before = socket.sent.length;
  socket.deliver({ method: 'news.of.tomorrow', params: { a: 1 } }, { strange: true }, null, 7, { e: 'x', t: 99, o: 1 }, { id: 12345, result: 1 },
    { id: 'abc', result: 1 }, { method: 'rpc.cancel', params: { id: 's77' } }, { method: 'topic.closed', params: { t: 5, reason: 'gen' } });
  socket.deliverText('{ not json');
  socket.deliverText(new ArrayBuffer(8));
  socket.deliver({ method: 'topic.closed', params: null }, { ping: 5 });
  expect(socket.sent.slice(before)).toEqual([{ pong: 5 }]);
  socket.deliver({ id: 's1', method: 'do.something', params: {} });
  expect(socket.sent.at(-1)).toMatchObject({ id: 's1', error: { code: -32601 } });
  expect(rig.client.status).toBe('open');
});

test('a listener that throws stops neither the others nor the frames', async () => {
  const rig = new Rig();
  rig.client.on('status', () => { throw new Error('mine'); });
  const heard: string[] = [];
  rig.client.on('status', (status) => heard.push(status));
  await rig.open();
  expect(heard).toEqual(['connecting', 'open']);
  expect(rig.errors.map((error) => error.message)).toContain('mine');
});
