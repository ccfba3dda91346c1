import { describe, expect, test } from 'vitest';
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
