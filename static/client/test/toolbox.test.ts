import { describe, expect, test, vi } from 'vitest';
import { RpcError, type ClientTool, type ToolContext } from '../src/index';
import { resumed, Rig, settle } from './fakes';

/** A tool whose calls are ended by the test. */
class Slow {
  calls: { args: any; ctx: ToolContext; resolve: (value: any) => void; reject: (error: any) => void }[] = [];
  readonly tool: ClientTool = {
    name: 'screen.show', description: 'Show a card', input: { type: 'object' }, idempotent: true, timeout_ms: 15000,
    run: (args, ctx) => new Promise((resolve, reject) => this.calls.push({ args, ctx, resolve, reject })),
  };
}

function call(id: string, more: object = {}) {
  return { id, method: 'tool.call', params: { call: 'k5', run: 'r17', name: 'screen.show', args: { a: 1 }, deadline_ms: 15000, redelivered: false, ...more } };
}

async function rigWithTool() {
  const slow = new Slow();
  const rig = new Rig({ tools: [slow.tool] });
  await rig.open();
  return { slow, rig };
}

describe('a tool of the client', () => {
  test('is offered in hello without its code', async () => {
    const { rig } = await rigWithTool();
    expect(rig.socket.sent[0].params.tools).toEqual([
      { name: 'screen.show', description: 'Show a card', input: { type: 'object' }, idempotent: true, timeout_ms: 15000 },
    ]);
  });

  test.each([
    ['shown', { content: [{ kind: 'text', text: 'shown' }] }],
    [undefined, { content: [] }],
    [{ n: 1 }, { content: [{ kind: 'text', text: '{"n":1}' }] }],
    [{ content: [{ kind: 'image', ref: 'b1' }] }, { content: [{ kind: 'image', ref: 'b1' }] }],
  ])('answers %j as content', async (value, result) => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    expect(slow.calls[0]!.args).toEqual({ a: 1 });
    expect(slow.calls[0]!.ctx).toMatchObject({ call: 'k5', run: 'r17', redelivered: false });
    slow.calls[0]!.resolve(value);
    await settle();
    expect(rig.socket.sent.at(-1)).toEqual({ id: 's12', result });
  });

  test('tells its progress, until it is answered', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    slow.calls[0]!.ctx.progress(1, 3, 'one');
    expect(rig.socket.sent.at(-1)).toEqual({ method: 'rpc.progress', params: { id: 's12', done: 1, total: 3, text: 'one' } });
    slow.calls[0]!.ctx.progress(2);
    expect(rig.socket.sent.at(-1)).toEqual({ method: 'rpc.progress', params: { id: 's12', done: 2 } });
    slow.calls[0]!.resolve('ok');
    await settle();
    slow.calls[0]!.ctx.progress(3);
    expect(rig.socket.sent.at(-1)).toHaveProperty('result');
  });

  test('answers its error', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s1'), call('s2'), call('s3', { name: 'unknown' }));
    slow.calls[0]!.reject(new Error('no screen'));
    slow.calls[1]!.reject(new RpcError({ code: 409, message: 'busy', data: { kind: 'screen.busy', retry: true } }));
    await settle();
    const answers = Object.fromEntries(rig.socket.sent.filter((frame) => frame.error).map((frame) => [frame.id, frame.error]));
    expect(answers.s1).toMatchObject({ code: -32603, message: 'screen.show: no screen', data: { kind: 'tool.failed' } });
    expect(answers.s2).toMatchObject({ code: 409, data: { kind: 'screen.busy', retry: true } });
    expect(answers.s3).toMatchObject({ code: 404, data: { kind: 'tool.unknown' } });
  });

  test('is aborted by rpc.cancel and answered 499, once', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    rig.socket.deliver({ method: 'rpc.cancel', params: { id: 's12' } });
    expect(slow.calls[0]!.ctx.signal.aborted).toBe(true);
    slow.calls[0]!.resolve('too late');
    await settle();
    expect(rig.socket.sent.filter((frame) => frame.id === 's12')).toMatchObject([{ error: { code: 499 } }]);
  });

  test('is aborted at its deadline', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12', { deadline_ms: 1000 }));
    await rig.clock.advance(1000);
    expect(slow.calls[0]!.ctx.signal.aborted).toBe(true);
    expect(rig.socket.sent.at(-1)).toMatchObject({ id: 's12', error: { code: 408 } });
  });

  test('works on several calls at once and answers each when it is done', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s1'), call('s2'), call('s3'));
    rig.socket.deliver({ method: 'rpc.cancel', params: { id: 's1' } });
    slow.calls[2]!.resolve('third');
    await settle();
    slow.calls[1]!.resolve('second');
    await settle();
    expect(rig.socket.sent.slice(1).map(({ id, error, result }) => [id, error?.code ?? result.content[0].text])).toEqual([
      ['s1', 499], ['s3', 'third'], ['s2', 'second'],
    ]);
    expect(slow.calls.map(({ ctx }) => ctx.signal.aborted)).toEqual([true, false, false]);
  });

  test.each([
    ['a value', (): unknown => { const ring: any = {}; ring.ring = ring; return ring; }],
    ['content', (): unknown => { const ring: any = { content: [] }; ring.content.push(ring); return ring; }],
  ])('whose result is %s that is no JSON answers an error', async (_, make) => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    slow.calls[0]!.resolve(make());
    await settle();
    expect(rig.socket.sent.at(-1)).toMatchObject({ id: 's12', error: { data: { kind: 'tool.failed' } } });
  });

  test('with a result larger than a frame answers 413', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    slow.calls[0]!.resolve('x'.repeat(1_048_576));
    await settle();
    expect(rig.socket.sent.at(-1)).toMatchObject({ id: 's12', error: { code: 413 } });
  });
});

describe('over a cut', () => {
  test('a call goes on, and its answer is sent after the resume, unasked', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    rig.socket.fail();
    slow.calls[0]!.ctx.progress(1);
    slow.calls[0]!.resolve('shown');
    await settle();
    await rig.greet();
    expect(rig.socket.sent).toHaveLength(1);
    rig.answerHello(resumed('s2'));
    expect(rig.socket.sent.slice(1)).toEqual([{ id: 's12', result: { content: [{ kind: 'text', text: 'shown' }] } }]);
  });

  test('a call that comes again runs once, whether it is running or answered', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    rig.socket.fail();
    await rig.open(resumed('s2'));
    rig.socket.deliver(call('s12', { redelivered: true }));
    expect(rig.socket.sent).toHaveLength(1);
    slow.calls[0]!.resolve('shown');
    await settle();
    const answer = { id: 's12', result: { content: [{ kind: 'text', text: 'shown' }] } };
    expect(rig.socket.sent.slice(1)).toEqual([answer]);
    rig.socket.fail();
    await rig.open(resumed('s3'));
    rig.socket.deliver(call('s12', { redelivered: true }));
    expect(rig.socket.sent.at(-1)).toEqual(answer);
    expect(slow.calls).toHaveLength(1);
  });

  test('a call that must not run twice and is not known here is refused', async () => {
    const once = vi.fn(() => 'done');
    const rig = new Rig({ tools: [{ name: 'once', description: '', input: { type: 'object' }, run: once }] });
    await rig.open(resumed('s2'));
    rig.socket.deliver(call('s7', { name: 'once', redelivered: true }));
    await settle();
    expect(rig.socket.sent.at(-1)).toMatchObject({ id: 's7', error: { code: 409, data: { kind: 'tool.lost' } } });
    expect(once).not.toHaveBeenCalled();
    rig.socket.deliver(call('s8', { name: 'once' }));
    await settle();
    expect(once).toHaveBeenCalledOnce();
  });

  test('an answer is forgotten when its deadline is over', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s12'));
    slow.calls[0]!.resolve('shown');
    await settle();
    await rig.clock.advance(15_000);
    rig.socket.fail();
    await rig.open(resumed('s2'));
    expect(rig.socket.sent).toHaveLength(1);
  });

  test('a lost session takes its calls with it', async () => {
    const { rig, slow } = await rigWithTool();
    rig.socket.deliver(call('s1'));
    rig.socket.fail();
    await rig.open({ session: { id: 'ses_2', secret: 'x', resumed: false, keep_ms: 1 } });
    expect(slow.calls[0]!.ctx.signal.aborted).toBe(true);
    slow.calls[0]!.resolve('old');
    await settle();
    expect(rig.socket.sent).toHaveLength(1);
    rig.socket.deliver(call('s1'));
    expect(slow.calls).toHaveLength(2);
    slow.calls[1]!.resolve('new');
    await settle();
    expect(rig.socket.sent.at(-1)).toEqual({ id: 's1', result: { content: [{ kind: 'text', text: 'new' }] } });
  });
});

describe('the tools on offer', () => {
  const tool = (name: string): ClientTool => ({ name, description: name, input: { type: 'object' }, run: () => name });
  const offered = (rig: Rig) => rig.socket.sent[0].params.tools?.map((each: any) => each.name);

  test('are left out of hello by a client that never had any, which keeps those of the session', async () => {
    const rig = new Rig();
    await rig.open();
    expect(offered(rig)).toBeUndefined();
  });

  test('are told anew by the next hello', async () => {
    const rig = new Rig({ tools: [tool('a')] });
    rig.client.addTool(tool('b'));
    await rig.open();
    expect(offered(rig)).toEqual(['a', 'b']);
    rig.client.dropTool('a');
    rig.client.dropTool('b');
    rig.socket.fail();
    await rig.open(resumed('s2'));
    expect(offered(rig)).toEqual([]);
  });

  test('are told at once by a hello that goes on with the session, and what is refused is given', async () => {
    const rig = new Rig();
    await rig.open();
    const first = rig.socket;
    const waiting = rig.client.request('run.start', { input: [] });
    rig.client.addTool(tool('clock'));
    const refused = rig.client.offerTools();
    await settle();
    expect(first.closedWith).toBe(1000);
    expect(rig.sockets).toHaveLength(2);
    rig.socket.onopen?.();
    expect(offered(rig)).toEqual(['clock']);
    expect(rig.socket.sent[0].params.resume).toEqual({ session: 'ses_1', secret: 's1' });
    rig.answerHello(resumed('s2', { tools_refused: ['clock'] }));
    expect(await refused).toEqual(['clock']);
    expect(rig.client.toolsRefused).toEqual(['clock']);
    rig.answer('run.start', { conv: 'c1', run: 'r1' });
    expect(await waiting).toMatchObject({ run: 'r1' });
  });

  test('cannot be told by a client that is closed', async () => {
    const rig = new Rig();
    await rig.open();
    const offering = rig.client.offerTools();
    rig.client.close();
    await expect(offering).rejects.toMatchObject({ kind: 'client.closed' });
    await expect(rig.client.offerTools()).rejects.toMatchObject({ kind: 'client.closed' });
  });
});
