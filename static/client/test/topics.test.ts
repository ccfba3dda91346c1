import { describe, expect, test } from 'vitest';
import { judge } from '../src/cursor';
import { emptyConv, type ConvState } from '../src/index';
import { resumed, Rig, settle, type FakeSocket } from './fakes';

test.each([
  [5, 5, undefined, 'drop'], [5, 4, undefined, 'drop'], [5, 4, 5, 'drop'], [5, 6, undefined, 'apply'], [5, 9, 5, 'apply'],
  [5, 9, 4, 'gap'], [5, 7, undefined, 'gap'], [5, 9, 6, 'gap'], [0, 1, undefined, 'apply'], [5, 6, 4, 'gap'],
] as const)('at %i a frame %i after %s: %s', (cur, o, p, verdict) => expect(judge(cur, o, p)).toBe(verdict));

function snapshot(t: number, off: number, title = 'Vans', more: object = {}) {
  const snap = emptyConv('c7');
  snap.conv.title = title;
  return { t, mode: 'snapshot', gen: 'b3', off, head: off, snap, ...more };
}

function replay(t: number, off: number, head = off) {
  return { t, mode: 'replay', gen: 'b3', off, head };
}

function titled(t: number, o: number, title: string, more: object = {}) {
  return { t, o, e: 'conv', d: { patch: { title } }, ...more };
}

/** A client whose `conv:c7` is subscribed as 3 at offset 10. */
async function subscribed() {
  const rig = new Rig();
  const handle = rig.client.topic<ConvState>('conv:c7');
  const socket = await rig.open({ topics: { 'conv:c7': snapshot(3, 10) } });
  return { rig, handle, socket, title: () => handle.state?.conv.title };
}

function asked(socket: FakeSocket) {
  return socket.calls('topic.subscribe').map((frame) => frame.params);
}

describe('the cursor', () => {
  test('applies what follows, merged ranges too, and drops what is known', async () => {
    const { handle, socket, title } = await subscribed();
    expect([handle.live, handle.off, handle.gen]).toEqual([true, 10, 'b3']);
    socket.deliver([titled(3, 11, 'a'), titled(3, 14, 'b', { p: 11 })]);
    expect([title(), handle.off]).toEqual(['b', 14]);
    socket.deliver([titled(3, 14, 'x'), titled(3, 12, 'x', { p: 10 }), titled(3, 11, 'x')]);
    expect([title(), handle.off]).toEqual(['b', 14]);
    expect(asked(socket)).toEqual([]);
  });

  test('subscribes again from where it stands at a gap, once, and drops frames meanwhile', async () => {
    const { handle, socket, title } = await subscribed();
    socket.deliver(titled(3, 12, 'x'), titled(3, 11, 'x'), titled(3, 13, 'x', { p: 10 }));
    socket.deliver({ ping: 1, heads: { 3: 99 } });
    expect([title(), handle.off, handle.live]).toEqual(['Vans', 10, false]);
    expect(asked(socket)).toEqual([{ topic: 'conv:c7', gen: 'b3', off: 10 }]);
    socket.deliver({ id: socket.last('topic.subscribe').id, result: replay(4, 10, 13) }, titled(3, 11, 'old handle'));
    expect([title(), handle.off]).toEqual(['Vans', 10]);
    socket.deliver(titled(4, 11, 'a', { r: 1 }), titled(4, 13, 'c', { p: 11, r: 1 }));
    expect([title(), handle.off, handle.live]).toEqual(['c', 13, true]);
    expect(asked(socket)).toHaveLength(1);
  });

  test('is left alone by ephemeral events, which are told', async () => {
    const { handle, socket } = await subscribed();
    const heard: any[] = [];
    const changes: string[] = [];
    handle.on('audio.level', (d, meta) => heard.push([d, meta]));
    handle.on('conv', (d, meta) => heard.push([d.patch.title, meta]));
    handle.subscribe((_, change) => changes.push(change.kind));
    socket.deliver({ t: 3, e: 'audio.level', d: 5 }, { t: 3, e: 'audio.level', d: 6 }, titled(3, 11, 'a', { r: 1 }), { t: 9, e: 'audio.level', d: 7 });
    expect(heard).toEqual([[5, {}], [6, {}], ['a', { o: 11, r: true }]]);
    expect(changes).toEqual(['snapshot', 'event']);
    expect(handle.off).toBe(11);
  });

  test('subscribes again where a heartbeat names a head above it, and only then', async () => {
    const { socket } = await subscribed();
    socket.deliver([titled(3, 11, 'a'), { ping: 1, heads: { 3: 11, 8: 50 } }]);
    expect(asked(socket)).toEqual([]);
    socket.deliver({ ping: 2, heads: { 3: 12 } });
    expect(asked(socket)).toEqual([{ topic: 'conv:c7', gen: 'b3', off: 11 }]);
  });

  test('takes a snapshot in place of what it has, and tells what was lost', async () => {
    const { handle, socket, title } = await subscribed();
    const changes: any[] = [];
    handle.subscribe((_, change) => changes.push(change));
    socket.deliver(titled(3, 15, 'x'));
    socket.deliver({ id: socket.last('topic.subscribe').id, result: snapshot(4, 40, 'new', { gen: 'b4', lost: { gen: 'b3', from: 10 } }) });
    expect([title(), handle.off, handle.gen]).toEqual(['new', 40, 'b4']);
    expect(changes.at(-1)).toEqual({ kind: 'snapshot', lost: { gen: 'b3', from: 10 } });
  });

  test.each([replay(4, 12), { ...replay(4, 10), gen: 'b4' }])('does not trust a replay that is of another position: %j', async (answer) => {
    const { handle, socket, title } = await subscribed();
    socket.deliver(titled(3, 15, 'x'));
    socket.deliver({ id: socket.last('topic.subscribe').id, result: answer });
    expect(asked(socket).at(-1)).toEqual({ topic: 'conv:c7' });
    socket.deliver({ id: socket.last('topic.subscribe').id, result: replay(5, 12) });
    expect(handle.error).toMatchObject({ code: 502 });
    expect(asked(socket)).toHaveLength(2);
    expect(title()).toBe('Vans');
  });

  test('asks for the whole state where an event cannot be folded', async () => {
    const { rig, handle, socket, title } = await subscribed();
    socket.deliver({ t: 3, o: 11, e: 'conv' });
    expect(rig.errors).toHaveLength(1);
    expect(asked(socket)).toEqual([{ topic: 'conv:c7' }]);
    socket.deliver({ id: socket.last('topic.subscribe').id, result: snapshot(4, 11, 'whole') });
    expect([title(), handle.live]).toEqual(['whole', true]);
  });
});

describe('over a reconnect', () => {
  test('positions go with hello, and the state stays meanwhile', async () => {
    const { rig, handle, socket, title } = await subscribed();
    socket.deliver(titled(3, 11, 'a'));
    socket.fail();
    expect([title(), handle.live]).toEqual(['a', false]);
    const hello = await rig.greet();
    expect(hello.params.topics).toEqual({ 'conv:c7': { gen: 'b3', off: 11 } });
    rig.answerHello(resumed('s2', { topics: { 'conv:c7': replay(3, 11, 12) } }));
    rig.socket.deliver(titled(3, 12, 'b', { r: 1 }));
    expect([title(), handle.live, handle.off]).toEqual(['b', true, 12]);
  });

  test('a handle of the last connection means nothing on this one', async () => {
    const { rig, socket, title } = await subscribed();
    socket.fail();
    await rig.open(resumed('s2', { topics: { 'conv:c7': replay(8, 10) } }));
    rig.socket.deliver(titled(3, 11, 'x'));
    expect(title()).toBe('Vans');
    rig.socket.deliver(titled(8, 11, 'a'));
    expect(title()).toBe('a');
  });

  test('a subscribe that the cut swallowed is asked again by hello', async () => {
    const { rig, handle, socket } = await subscribed();
    socket.deliver(titled(3, 15, 'x'));
    socket.fail();
    await rig.open(resumed('s2', { topics: { 'conv:c7': replay(1, 10) } }));
    expect(handle.live).toBe(true);
    expect(asked(rig.socket)).toEqual([]);
  });

  test('what hello could not fit or did not name is subscribed to alone', async () => {
    const rig = new Rig();
    const large = rig.client.topic('conv:large');
    const other = rig.client.topic('conv:other');
    const foreign = rig.client.topic('conv:foreign');
    const socket = await rig.open({ topics: {
      'conv:large': { error: { code: 413, message: '', data: { kind: 'topic.later' } } },
      'conv:foreign': { error: { code: 404, message: '', data: { kind: 'topic.unknown' } } },
    } });
    expect(asked(socket)).toEqual([{ topic: 'conv:large' }, { topic: 'conv:other' }]);
    expect(foreign.error).toMatchObject({ code: 404, kind: 'topic.unknown' });
    const [first, second] = socket.calls('topic.subscribe');
    socket.deliver({ id: second.id, result: snapshot(2, 1) }, { id: first.id, result: snapshot(1, 1) });
    expect([large.live, other.live, foreign.live]).toEqual([true, true, false]);
  });

  test('hello names no more topics than the server takes', async () => {
    const rig = new Rig();
    await rig.open({ limits: { frame: 1048576, inflight: 64, topics: 2 } });
    for (const name of ['conv:a', 'conv:b', 'conv:c']) rig.client.topic(name);
    rig.socket.fail();
    const hello = await rig.greet();
    expect(Object.keys(hello.params.topics)).toEqual(['conv:a', 'conv:b']);
    rig.answerHello(resumed('s2', { limits: { topics: 2 }, topics: { 'conv:a': snapshot(1, 1), 'conv:b': snapshot(2, 1) } }));
    expect(asked(rig.socket)).toEqual([{ topic: 'conv:c' }]);
  });
});

describe('the end of a subscription', () => {
  test.each(['gen', 'behind'])('for %s is followed by another', async (reason) => {
    const { handle, socket } = await subscribed();
    socket.deliver({ method: 'topic.closed', params: { t: 3, reason } }, titled(3, 11, 'x'));
    expect(asked(socket)).toEqual([{ topic: 'conv:c7', gen: 'b3', off: 10 }]);
    socket.deliver({ id: socket.last('topic.subscribe').id, result: snapshot(4, 20, 'b') });
    expect([handle.live, handle.off]).toEqual([true, 20]);
  });

  test.each(['deleted', 'denied'])('because it is %s is an error', async (reason) => {
    const { handle, socket } = await subscribed();
    const kinds: string[] = [];
    handle.subscribe((_, change) => kinds.push(change.kind));
    socket.deliver({ method: 'topic.closed', params: { t: 3, reason } });
    expect(handle.error?.kind).toBe(`topic.${reason}`);
    expect(kinds).toEqual(['snapshot', 'error']);
    expect(asked(socket)).toEqual([]);
  });

  test('under an old handle is no news', async () => {
    const { handle, socket } = await subscribed();
    socket.deliver({ method: 'topic.closed', params: { t: 2, reason: 'deleted' } });
    expect(handle.live).toBe(true);
  });

  test('an error is tried again with the next connection, and told when it is over', async () => {
    const { rig, handle, socket } = await subscribed();
    socket.deliver({ method: 'topic.closed', params: { t: 3, reason: 'denied' } });
    const kinds: string[] = [];
    handle.subscribe((_, change) => kinds.push(change.kind));
    socket.fail();
    await rig.open(resumed('s2', { topics: { 'conv:c7': replay(1, 10) } }));
    expect([handle.error, handle.live]).toEqual([undefined, true]);
    expect(kinds).toEqual(['snapshot', 'snapshot']);
  });

  test('a refusal that may pass is asked again after its time', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    const handle = rig.client.topic('hub');
    rig.refuse('topic.subscribe', 503, { kind: 'busy', retry: true, after_ms: 700 });
    await rig.clock.advance(699);
    expect(asked(socket)).toHaveLength(1);
    await rig.clock.advance(1);
    expect(asked(socket)).toHaveLength(2);
    rig.answer('topic.subscribe', { t: 1, mode: 'snapshot', gen: 'g', off: 0, head: 0, snap: {} });
    expect(handle.live).toBe(true);
  });
});

describe('holds', () => {
  test('share one subscription, which ends some time after the last is released', async () => {
    const { rig, handle, socket } = await subscribed();
    const second = rig.client.topic('conv:c7');
    expect(second.state).toBe(handle.state);
    handle.release();
    handle.release();
    await rig.clock.advance(11_000);
    expect(socket.calls('topic.unsubscribe')).toHaveLength(0);
    second.release();
    await rig.clock.advance(5_000);
    const third = rig.client.topic('conv:c7');
    await rig.clock.advance(11_000);
    expect([socket.calls('topic.unsubscribe').length, third.live, asked(socket).length]).toEqual([0, true, 0]);
    third.release();
    // Anything heard keeps the line.
    socket.deliver({ ping: 1 });
    await rig.clock.advance(10_000);
    expect(socket.last('topic.unsubscribe').params).toEqual({ topic: 'conv:c7' });
    rig.answer('topic.unsubscribe', {});
    socket.fail();
    expect((await rig.greet()).params.topics).toEqual({});
  });

  test('taken while it is unsubscribed are subscribed again after, from where they stood', async () => {
    const { rig, handle, socket } = await subscribed();
    handle.release();
    await rig.clock.advance(10_000);
    const again = rig.client.topic('conv:c7');
    expect(asked(socket)).toEqual([]);
    rig.answer('topic.unsubscribe', {});
    expect(asked(socket)).toEqual([{ topic: 'conv:c7', gen: 'b3', off: 10 }]);
    rig.answer('topic.subscribe', replay(4, 10));
    expect(again.live).toBe(true);
  });

  test('release their own listeners only', async () => {
    const { rig, handle, socket } = await subscribed();
    const second = rig.client.topic('conv:c7');
    const heard: string[] = [];
    handle.subscribe(() => heard.push('first'));
    const stop = second.subscribe(() => heard.push('second'));
    second.on('conv', () => heard.push('raw'));
    heard.length = 0;
    handle.release();
    socket.deliver(titled(3, 11, 'a'));
    stop();
    stop();
    socket.deliver(titled(3, 12, 'b'));
    expect(heard).toEqual(['raw', 'second', 'raw']);
  });

  test('make room under the limit of topics when nobody holds another', async () => {
    const { rig, handle, socket } = await subscribed();
    const other = rig.client.topic('conv:c8');
    handle.release();
    rig.refuse('topic.subscribe', 429, { kind: 'topic.limit' });
    expect(other.error?.kind).toBe('topic.limit');
    rig.answer('topic.unsubscribe', {});
    expect(asked(socket).map((params) => params.topic)).toEqual(['conv:c8', 'conv:c8']);
    rig.answer('topic.subscribe', snapshot(4, 1));
    expect([other.live, other.error]).toEqual([true, undefined]);
  });
});

describe('the subscription that comes with run.start', () => {
  test('is there before the first event, for a handle taken after the answer too', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    const started = rig.client.startRun({ input: [{ kind: 'text', text: 'hi' }] });
    socket.deliver([
      { id: socket.last('run.start').id, result: { conv: 'c7', run: 'r1', msg: 'm1', state: 'running', topic: snapshot(3, 2) } },
      titled(3, 3, 'first'),
    ]);
    const answer = await started;
    expect(answer).toEqual({ conv: 'c7', run: 'r1', msg: 'm1', state: 'running' });
    const handle = rig.client.topic<ConvState>('conv:c7');
    expect([handle.state?.conv.title, handle.off, handle.live]).toEqual(['first', 3, true]);
    await rig.clock.advance(20_000);
    expect(socket.calls('topic.unsubscribe')).toHaveLength(0);
    expect(asked(socket)).toEqual([]);
  });

  test('ends where nobody takes it', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    void rig.client.startRun({ input: [] });
    rig.answer('run.start', { conv: 'c7', run: 'r1', topic: snapshot(3, 2) });
    await rig.clock.advance(10_000);
    expect(socket.last('topic.unsubscribe').params).toEqual({ topic: 'conv:c7' });
  });

  test('is an error of the topic where the server could not give it, and 413 is asked for alone', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    void rig.client.startRun({ input: [] });
    rig.answer('run.start', { conv: 'c1', run: 'r1', topic: { error: { code: 429, message: '', data: { kind: 'topic.limit' } } } });
    expect(rig.client.topic('conv:c1').error?.kind).toBe('topic.limit');
    void rig.client.startRun({ input: [] });
    rig.answer('run.start', { conv: 'c2', run: 'r2', topic: { error: { code: 413, message: '', data: { kind: 'topic.later' } } } });
    expect(asked(socket)).toEqual([{ topic: 'conv:c2' }]);
  });

  test('is not needed where one is open or live', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    void rig.client.startRun({ conv: 'c7', input: [] });
    const handle = rig.client.topic<ConvState>('conv:c7');
    rig.answer('run.start', { conv: 'c7', run: 'r1', topic: snapshot(3, 2, 'old') });
    expect(handle.state).toBeUndefined();
    rig.answer('topic.subscribe', snapshot(4, 2, 'mine'));
    expect(handle.state?.conv.title).toBe('mine');

    void rig.client.startRun({ conv: 'c7', input: [] });
    rig.answer('run.start', { conv: 'c7', run: 'r2', topic: snapshot(5, 2) });
    expect(asked(socket).at(-1)).toEqual({ topic: 'conv:c7', gen: 'b3', off: 2 });
    rig.answer('topic.subscribe', replay(6, 2));
    expect(handle.live).toBe(true);
  });

  test('is taken from an answer that came after the caller gave up', async () => {
    const rig = new Rig();
    const socket = await rig.open();
    const abort = new AbortController();
    rig.client.startRun({ input: [] }, { signal: abort.signal }).catch(() => undefined);
    abort.abort();
    rig.answer('run.start', { conv: 'c7', run: 'r1', topic: snapshot(3, 2) });
    await rig.clock.advance(10_000);
    expect(socket.calls('topic.unsubscribe')).toHaveLength(1);
  });
});

test("a plugin's own topic has the fold that the application gave", async () => {
  const rig = new Rig({ reducers: { weather: (state, e, d) => { if (e === 'set') state.sky = d; } } });
  const folded = rig.client.topic<any>('weather:here');
  const raw = rig.client.topic<any>('other:x');
  const socket = await rig.open({ topics: {
    'weather:here': { t: 1, mode: 'snapshot', gen: 'g', off: 0, head: 0, snap: { sky: 'rain' } },
    'other:x': { t: 2, mode: 'snapshot', gen: 'g', off: 0, head: 0, snap: { n: 1 } },
  } });
  const heard: any[] = [];
  raw.on('set', (d) => heard.push(d));
  socket.deliver({ t: 1, o: 1, e: 'set', d: 'sun' }, { t: 2, o: 1, e: 'set', d: 5 });
  await settle();
  expect([folded.state, raw.state, raw.off, heard]).toEqual([{ sky: 'sun' }, { n: 1 }, 1, [5]]);
});
