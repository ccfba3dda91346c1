import { emptyConv, reduceConv, type ConvState } from '@sag/client';
import { describe, expect, it } from 'vitest';
import { touchedRuns, TranscriptBuilder, turnsOf, turnText, type Turn } from '../src/lib/transcript';

const NO_MODELS = new Map<string, string>();

function fold(...events: [string, unknown][]): ConvState {
  const state = emptyConv('c1');
  for (const [e, d] of events) reduceConv(state, e, d);
  return state;
}

function open(run: string, status = 'running'): [string, unknown] {
  return ['run.open', { run, kind: 'chat', by: 'u1', client: 'chat', config: {}, rev: 1, status, ts: 1, ...(status === 'running' ? { base: {} } : {}) }];
}

function said(msg: string, run: string, text: string): [string, unknown] {
  return ['message.add', { msg, role: 'user', run, ts: 1, parts: [{ kind: 'text', text }] }];
}

function reply(msg: string, run: string, part: number, text: string, step = 1): [string, unknown][] {
  return [
    ['message.add', { msg, role: 'assistant', run, ts: 2, parts: [], step }],
    ['part.open', { part, run, msg, kind: 'text', ts: 2 }],
    ['delta', [part, text]],
  ];
}

function close(run: string, status = 'done'): [string, unknown] {
  return ['run.close', { run, status, usage: { input: 1, output: 2 }, ts: 9 }];
}

function build(state: ConvState) {
  return new TranscriptBuilder().build(state, null, 'all', NO_MODELS);
}

const outline = (turns: Turn[]) => turns.map((turn) => `${turn.role}: ${turnText(turn)}`);

describe('turns', () => {
  it('join the steps of a run into one reply', () => {
    const state = fold(open('r1'), said('m1', 'r1', 'Hi'), ...reply('m2', 'r1', 1, 'First.'), ...reply('m3', 'r1', 2, 'Second.', 2));
    expect(outline(build(state).turns)).toEqual(['user: Hi', 'assistant: First.\n\nSecond.']);
  });

  it('stand in the order in which their runs began, though a queued message came in between', () => {
    const state = fold(
      open('r1'), said('m1', 'r1', 'One'), ...reply('m2', 'r1', 1, 'To one'),
      open('r2', 'queued'), said('m3', 'r2', 'Two'),
      ...reply('m4', 'r1', 2, 'more to one', 2), close('r1'),
      ['run', { run: 'r2', patch: { status: 'running', base: {} } }], ...reply('m5', 'r2', 3, 'To two'),
    );
    expect(outline(build(state).turns)).toEqual(['user: One', 'assistant: To one\n\nmore to one', 'user: Two', 'assistant: To two']);
  });

  it('leave a queued message to the chips, and one that was taken out of the queue to nobody', () => {
    const events: [string, unknown][] = [open('r1'), said('m1', 'r1', 'One'), open('r2', 'queued'), said('m2', 'r2', 'Two')];
    const queued = build(fold(...events));
    expect(queued.queued).toEqual([{ run: 'r2', text: 'Two', files: [], model: null, kind: 'chat', setups: { chat: {} }, plain: true }]);
    expect(outline(queued.turns)).toEqual(['user: One', 'assistant: ']);
    const removed = build(fold(...events, close('r2', 'cancelled')));
    expect(removed.queued).toEqual([]);
    expect(outline(removed.turns)).toEqual(['user: One', 'assistant: ']);
  });

  it('put a steer where it was said', () => {
    const state = fold(open('r1'), said('m1', 'r1', 'Go'), ...reply('m2', 'r1', 1, 'Going'), said('m3', 'r1', 'Left!'), ...reply('m4', 'r1', 2, 'Left it is', 2));
    expect(outline(build(state).turns)).toEqual(['user: Go', 'assistant: Going', 'user: Left!', 'assistant: Left it is']);
  });

  it('show a run that failed before it said anything', () => {
    const state = fold(open('r1'), said('m1', 'r1', 'Go'), ['run.close', { run: 'r1', status: 'failed', usage: { input: 0, output: 0 }, ts: 3, error: { kind: 'model.auth', message: 'No key', retry: false } }]);
    const last = build(state).turns.at(-1)!;
    expect([last.role, last.status, last.error?.message]).toEqual(['assistant', 'failed', 'No key']);
  });

  it('keep their objects while only another run changes', () => {
    const builder = new TranscriptBuilder();
    const state = fold(open('r1'), said('m1', 'r1', 'One'), ...reply('m2', 'r1', 1, 'To one'), close('r1'), open('r2'), said('m3', 'r2', 'Two'), ...reply('m4', 'r2', 2, 'To'));
    const before = builder.build(state, null, 'all', NO_MODELS).turns;
    reduceConv(state, 'delta', [2, ' two']);
    const touched = touchedRuns(state, 'delta', [2, ' two']);
    expect(touched).toEqual(['r2']);
    const after = builder.build(state, null, new Set(touched), NO_MODELS).turns;
    expect([after[0] === before[0], after[1] === before[1], after[3] === before[3]]).toEqual([true, true, false]);
    expect(turnText(after[3]!)).toBe('To two');
  });
});

describe('older messages', () => {
  it('stand before the others, with their own runs and calls', () => {
    const all = fold(
      open('r1'), said('m1', 'r1', 'One'), ['message.add', { msg: 'm2', role: 'assistant', run: 'r1', ts: 2, parts: [], step: 1 }],
      ['tool.open', { call: 'k1', run: 'r1', name: 'count', origin: 'demo', args: {}, risk: 'read', ts: 3, step: 1 }], close('r1'),
    );
    const newest = fold(open('r2'), said('m3', 'r2', 'Two'), ...reply('m4', 'r2', 2, 'To two'));
    const { turns } = new TranscriptBuilder().build(newest, all, 'all', NO_MODELS);
    expect(outline(turns)).toEqual(['user: One', 'assistant: ', 'user: Two', 'assistant: To two']);
    expect(turns[1]!.items[0]).toMatchObject({ kind: 'tools', calls: [{ call: 'k1' }] });
    expect(turns[1]!.status).toBe('done');
  });
});

describe('tool calls', () => {
  const opened: [string, unknown] = ['tool.open', { call: 'k1', run: 'r1', name: 'count', origin: 'demo', args: { from: 3 }, risk: 'read', ts: 3, step: 1 }];

  it('stand where the model wrote their arguments, first as being prepared', () => {
    const events: [string, unknown][] = [
      open('r1'), said('m1', 'r1', 'Go'), ...reply('m2', 'r1', 1, 'Let me count.'),
      ['part.open', { part: 2, run: 'r1', msg: 'm2', kind: 'tool_args', call: 'k1', name: 'count', ts: 3 }], ['delta', [2, '{"from"']],
    ];
    const preparing = build(fold(...events)).turns[1]!.items[1]!;
    expect(preparing).toMatchObject({ kind: 'tools', calls: [{ name: 'count', status: 'preparing', argsText: '{"from"' }] });
    const running = build(fold(...events, opened)).turns[1]!.items[1]!;
    expect(running).toMatchObject({ kind: 'tools', calls: [{ name: 'count', status: 'running', args: { from: 3 } }] });
  });

  it('tell whose they are, and what they wrote while they worked', () => {
    const view = build(fold(
      open('r1'), said('m1', 'r1', 'Go'), ...reply('m2', 'r1', 1, 'Building.'),
      ['part.open', { part: 2, run: 'r1', msg: 'm2', kind: 'tool_args', call: 'k1', name: 'shop__build', ts: 3 }], ['delta', [2, '{}']],
      ['tool.open', { call: 'k1', run: 'r1', name: 'build', title: 'Build it', origin: 'shop', connector: 'shop', args: {}, risk: 'write', ts: 3, step: 1 }],
      ['part.open', { part: 3, run: 'r1', msg: 'm2', kind: 'tool_output', call: 'k1', ts: 4 }], ['delta', [3, 'one\n', 3, 'two\n']],
      ['part.close', { part: 3, len: 8 }], ['part.open', { part: 4, run: 'r1', msg: 'm2', kind: 'tool_output', call: 'k1', ts: 5 }], ['delta', [4, 'three']],
    )).turns[1]!.items[1]!;
    expect(view).toMatchObject({ kind: 'tools', calls: [{ name: 'build', title: 'Build it', connector: 'shop', output: 'one\ntwo\nthree' }] });
    expect(view.kind === 'tools' && view.calls.length).toBe(1);
  });

  it('are found by their step where no part announces them', () => {
    const state = fold(open('r1'), said('m1', 'r1', 'Go'), ...reply('m2', 'r1', 1, 'Let me see.'), opened, ['tool.close', { call: 'k1', status: 'ok', ms: 5, result: 1 }], ...reply('m3', 'r1', 2, 'Done.', 2));
    expect(build(state).turns[1]!.items.map((item) => item.kind)).toEqual(['text', 'tools', 'text']);
  });

  it('are grouped while nothing is said between them', () => {
    const second: [string, unknown] = ['tool.open', { call: 'k2', run: 'r1', name: 'count', origin: 'demo', args: {}, risk: 'read', ts: 4, step: 1 }];
    const state = fold(open('r1'), said('m1', 'r1', 'Go'), ['message.add', { msg: 'm2', role: 'assistant', run: 'r1', ts: 2, parts: [], step: 1 }], opened, second);
    const { items } = build(state).turns[1]!;
    expect(items).toHaveLength(1);
    expect(items[0]).toMatchObject({ kind: 'tools', calls: [{ call: 'k1' }, { call: 'k2' }] });
  });

  it('wait for the person while they are asked about', () => {
    const state = fold(open('r1'), said('m1', 'r1', 'Go'), opened, ['ask.open', { ask: 'a1', run: 'r1', call: 'k1', kind: 'approval', title: '?', options: ['deny'], expires_at: 9, on_expiry: 'deny', ts: 3 }]);
    expect(build(state).turns[1]!.items[0]).toMatchObject({ calls: [{ status: 'asking' }] });
  });
});

describe('rounds and what happens between them', () => {
  const step = (n: number, msg: string, model: string): [string, unknown][] => [
    ['step.open', { run: 'r1', step: n, model }],
    ['message.add', { msg, role: 'assistant', run: 'r1', ts: 2, parts: [], step: n }],
  ];
  const text = (msg: string, part: number, words: string): [string, unknown][] => [
    ['part.open', { part, run: 'r1', msg, kind: 'text', ts: 2 }], ['delta', [part, words]], ['part.close', { part, len: words.length }],
  ];
  const end = (n: number, finish: string, some: object = {}): [string, unknown] => ['step.close', { run: 'r1', step: n, finish, ...some }];
  const begin: [string, unknown][] = [open('r1'), said('m1', 'r1', 'Go')];
  const kinds = (turn: Turn) => turn.items.map((item) => (item.kind === 'note' ? item.note.about : item.kind));

  it('are told with model, usage, time, the time of thinking and the vendor\'s id', () => {
    const usage = { input: 900, output: 40, reasoning: 25, cached: 800, cost_usd: 0.002 };
    const state = fold(
      ...begin, ...step(1, 'm2', 'a/one'),
      ['part.open', { part: 1, run: 'r1', msg: 'm2', kind: 'reasoning', ts: 2 }], ['delta', [1, 'Hm']], ['part.close', { part: 1, len: 2, ms: 1500 }],
      ...text('m2', 2, 'Well'), end(1, 'stop', { usage, ms: 4000, request: 'req_1' }), close('r1'),
    );
    const turn = build(state).turns[1]!;
    expect(turn.rounds).toEqual([{ step: 1, model: 'a/one', usage, ms: 4000, thoughtMs: 1500, finish: 'stop', request: 'req_1' }]);
    expect(turn.items[0]).toMatchObject({ kind: 'reasoning', ms: 1500 });
  });

  it('name the models that failed before another one answered, once for all of them', () => {
    const error = { kind: 'provider.overloaded', message: 'Too busy', retry: true };
    const events: [string, unknown][] = [
      ...begin, ...step(1, 'm2', 'a/one'), end(1, 'fallback', { error }), ...step(2, 'm3', 'b/two'), end(2, 'fallback', { error: { ...error, message: 'Busy too' } }),
      ...step(3, 'm4', 'c/three'), ...text('m4', 1, 'Here'),
    ];
    const note = { about: 'fallback', from: ['a/one', 'b/two'], to: 'c/three', why: 'Busy too', answered: true };
    const open_ = build(fold(...events)).turns[1]!;
    expect(kinds(open_)).toEqual(['fallback', 'text']);
    expect(open_.items[0]).toMatchObject({ note });
    const closed = build(fold(...events, end(3, 'tools'), ...step(4, 'm5', 'c/three'), ...text('m5', 2, 'More'), end(4, 'stop'), close('r1'))).turns[1]!;
    expect(kinds(closed)).toEqual(['fallback', 'text', 'text']);
    const failed = build(fold(...events.slice(0, -3), end(3, 'failed'), close('r1', 'failed'))).turns[1]!;
    expect(failed.items[0]).toMatchObject({ note: { ...note, answered: false } });
  });

  it('say from where on the oldest messages were left out', () => {
    const trimmed = { step: 2, messages: 12, context: 8000 };
    const state = fold(...begin, ...step(1, 'm2', 'a/one'), ...text('m2', 1, 'One'), end(1, 'tools'), ...step(2, 'm3', 'a/one'), ['run', { run: 'r1', patch: { trimmed } }], ...text('m3', 2, 'Two'));
    expect(kinds(build(state).turns[1]!)).toEqual(['text', 'trimmed', 'text']);
  });

  it.each(['length', 'refused'])('say behind it that an answer ended by %s', (finish) => {
    const state = fold(...begin, ...step(1, 'm2', 'a/one'), ...text('m2', 1, 'One'), end(1, finish, { usage: { input: 3, output: 7 } }), close('r1'));
    expect(kinds(build(state).turns[1]!)).toEqual(['text', finish]);
    expect(build(state).turns[1]!.items[1]).toMatchObject({ note: { tokens: 7 } });
  });

  it('show thoughts without words by their time alone, and none that took no time', () => {
    const thought = (ms: number): [string, unknown][] => [['part.open', { part: 1, run: 'r1', msg: 'm2', kind: 'reasoning', ts: 2 }], ['part.close', { part: 1, len: 0, ms }]];
    const long = build(fold(...begin, ...step(1, 'm2', 'a/one'), ...thought(3000), ...text('m2', 2, 'So'))).turns[1]!;
    expect(long.items[0]).toMatchObject({ kind: 'reasoning', text: '', ms: 3000 });
    expect(kinds(build(fold(...begin, ...step(1, 'm2', 'a/one'), ...thought(2), ...text('m2', 2, 'So'))).turns[1]!)).toEqual(['text']);
  });

  it('show what the hub waits for, and no longer once it goes on', () => {
    const why = { kind: 'provider.rate_limit', message: 'Slow down', attempt: 2, of: 3, ts: 1 };
    const waits: [string, unknown] = ['run', { run: 'r1', patch: { status: 'waiting', after_ms: 7000, why } }];
    const goesOn: [string, unknown] = ['run', { run: 'r1', patch: { status: 'running', after_ms: null, why: null } }];
    const waiting = build(fold(...begin, ...step(1, 'm2', 'a/one'), waits)).turns[1]!;
    expect([waiting.status, waiting.afterMs, waiting.why, waiting.thinking]).toEqual(['waiting', 7000, why, false]);
    const going = build(fold(...begin, ...step(1, 'm2', 'a/one'), waits, goesOn)).turns[1]!;
    expect([going.afterMs, going.why, going.thinking]).toEqual([undefined, undefined, true]);
    const person = build(fold(...begin, ['run', { run: 'r1', patch: { status: 'waiting' } }])).turns[1]!;
    expect([person.status, person.why]).toEqual(['waiting', undefined]);
  });
});

describe('agents', () => {
  const begin = (agent: string, title: string): [string, unknown] => ['agent.open', { run: 'r1', agent, title, ts: 2 }];
  const speak = (msg: string, agent: string, part: number, text: string, step: number, ts: number): [string, unknown][] => [
    ['step.open', { run: 'r1', step, model: 'a/m', agent, ts }], ['message.add', { msg, role: 'assistant', run: 'r1', agent, ts, parts: [], step }],
    ['part.open', { part, run: 'r1', msg, kind: 'text', ts, agent }], ['delta', [part, text]],
  ];
  const ended = (step: number, ms: number, finish = 'stop'): [string, unknown] => ['step.close', { run: 'r1', step, finish, ms }];
  const makes = (msg: string, part: number, call: string, name: string, more: Record<string, unknown> = {}): [string, unknown][] => [
    ['part.open', { part, run: 'r1', msg, kind: 'tool_args', call, ts: 2, name }],
    ['tool.open', { call, run: 'r1', name, origin: 'x', args: {}, risk: 'read', ts: 20, ...more }],
  ];
  const lanes = (turn: Turn) => turn.blocks.map((block) => block.lanes.map((lane) => `${lane.speaker?.name}: ${lane.items.map((item) => (item.kind === 'text' ? item.text : item.kind)).join(' ')}`));

  it('that speak one after the other have a block each, also where one speaks again', () => {
    const state = fold(
      open('r1'), begin('a', 'Ada'), ...speak('m1', 'a', 1, 'One', 1, 10), ended(1, 10), begin('b', 'Ben'), ...speak('m2', 'b', 2, 'Two', 2, 30), ended(2, 5),
      ...speak('m3', 'a', 3, 'Three', 3, 40), ended(3, 5), ...speak('m4', 'a', 4, 'Four', 4, 50),
    );
    const turn = build(state).turns[0]!;
    expect(lanes(turn)).toEqual([['Ada: One'], ['Ben: Two'], ['Ada: Three'], ['Ada: Four']]);
    expect(turn.blocks.map((block) => block.lanes[0]!.isOpen)).toEqual([false, false, false, true]);
    expect(turnsOf([turn], 'r1')).toBe(4);
  });

  it('keep to their lane over the rounds of a turn', () => {
    const state = fold(
      open('r1'), begin('a', 'Ada'), ...speak('m1', 'a', 1, 'Looking', 1, 10), ...makes('m1', 2, 'k1', 'look_up', { agent: 'a' }), ended(1, 10, 'tools'),
      ['tool.close', { call: 'k1', status: 'ok', ms: 5 }], ...speak('m2', 'a', 3, 'Found', 2, 30), ended(2, 5),
    );
    const turn = build(state).turns[0]!;
    expect(lanes(turn)).toEqual([['Ada: Looking tools Found']]);
    expect(turn.items.flatMap((item) => (item.kind === 'tools' ? item.calls.map((call) => call.agent) : []))).toEqual(['Ada']);
  });

  it('that work at once stand side by side, however their rounds follow each other', () => {
    const state = fold(
      open('r1'), begin('a', 'Ada'), begin('b', 'Ben'), ...speak('m1', 'a', 1, 'A1', 1, 10), ...speak('m2', 'b', 2, 'B1', 2, 11),
      ...makes('m1', 3, 'k1', 'look_up', { agent: 'a' }), ended(1, 5, 'tools'), ...makes('m2', 4, 'k2', 'look_up', { agent: 'b' }), ended(2, 5, 'tools'),
      ['tool.close', { call: 'k2', status: 'ok', ms: 5 }], ...speak('m3', 'b', 5, 'B2', 3, 30), ended(3, 5),
      ['tool.close', { call: 'k1', status: 'ok', ms: 50 }], ...speak('m4', 'a', 6, 'A2', 4, 80), ended(4, 5),
      begin('c', 'Cy'), ...speak('m5', 'c', 7, 'C', 5, 100),
    );
    expect(lanes(build(state).turns[0]!)).toEqual([['Ada: A1 tools A2', 'Ben: B1 tools B2'], ['Cy: C']]);
  });

  it('go on in their lane after a restart, and whoever was cut stands beside nobody', () => {
    const state = fold(
      open('r1'), begin('a', 'Ada'), ...speak('m1', 'a', 1, 'On', 1, 10), ['part.close', { part: 1, len: 2, partial: true }], ['step.close', { run: 'r1', step: 1, finish: 'interrupted' }],
      close('r1', 'interrupted'), ['run', { run: 'r1', patch: { status: 'running' } }], ...speak('m2', 'a', 2, 'Once more', 2, 500), ended(2, 5), begin('b', 'Ben'), ...speak('m3', 'b', 3, 'Yes', 3, 600),
    );
    expect(lanes(build(state).turns[0]!)).toEqual([['Ada: On Once more'], ['Ben: Yes']]);
  });

  it('hand over in a line', () => {
    const state = fold(
      open('r1'), begin('t', 'Triage'), ['step.open', { run: 'r1', step: 1, model: 'a/m', agent: 't' }], ['message.add', { msg: 'm1', role: 'assistant', run: 'r1', agent: 't', ts: 10, parts: [], step: 1 }],
      ...makes('m1', 1, 'k1', 'hand_over', { agent: 't', ends: true, args: { agent: 'b', note: 'yours' } }), ended(1, 5, 'tools'), ['tool.close', { call: 'k1', status: 'ok', ms: 0 }],
      begin('b', 'Ben'), ...speak('m2', 'b', 2, 'Mine', 2, 30),
    );
    const turn = build(state).turns[0]!;
    expect(lanes(turn)).toEqual([['Triage: line'], ['Ben: Mine']]);
    expect(turn.items[0]).toMatchObject({ kind: 'line', line: { who: { name: 'Triage' }, to: { name: 'Ben' }, text: 'yours' } });
  });

  it('have a call that was lost and made again on one card', () => {
    const state = fold(
      open('r1'), begin('a', 'Ada'), ...speak('m1', 'a', 1, 'Looking', 1, 10), ...makes('m1', 2, 'k1', 'look_up', { agent: 'a', step: 1 }), ended(1, 5, 'tools'),
      ['tool.close', { call: 'k1', status: 'lost', ms: 0 }], ['tool.open', { call: 'k2', run: 'r1', name: 'look_up', origin: 'x', args: {}, risk: 'read', ts: 60, agent: 'a', step: 1, again: 'k1' }],
      ['tool.close', { call: 'k2', status: 'ok', ms: 7 }],
    );
    const calls = build(state).turns[0]!.items.flatMap((item) => (item.kind === 'tools' ? item.calls : []));
    expect(calls.map((call) => [call.call, call.status, call.repeats])).toEqual([['k2', 'ok', 1]]);
  });

  it('show in their own lane that they are at work', () => {
    const state = fold(open('r1'), begin('a', 'Ada'), ['step.open', { run: 'r1', step: 1, model: 'a/m', agent: 'a' }], ['message.add', { msg: 'm1', role: 'assistant', run: 'r1', agent: 'a', ts: 10, parts: [], step: 1 }]);
    const turn = build(state).turns[0]!;
    expect([turn.thinking, turn.blocks[0]!.lanes[0]!.waits]).toEqual([false, true]);
  });

  it('keep the objects of what they said before, while one goes on', () => {
    const builder = new TranscriptBuilder();
    const state = fold(open('r1'), begin('a', 'Ada'), ...speak('m1', 'a', 1, 'One', 1, 10), ended(1, 10), begin('b', 'Ben'), ...speak('m2', 'b', 3, 'Two', 2, 300));
    const before = builder.build(state, null, 'all', NO_MODELS).turns[0]!;
    reduceConv(state, 'delta', [3, ' more']);
    const after = builder.build(state, null, new Set(['r1']), NO_MODELS).turns[0]!;
    expect(after.blocks[0]).toBe(before.blocks[0]);
    expect(lanes(after)[1]).toEqual(['Ben: Two more']);
    reduceConv(state, 'delta', [1, ' after all']);
    expect(builder.build(state, null, new Set(['r1']), NO_MODELS).turns[0]!.blocks[0]).not.toBe(before.blocks[0]);
  });

  it('leave what their kind keeps with the first reply', () => {
    const state = fold(open('r1'), said('u1', 'r1', 'Go'), ...reply('m1', 'r1', 1, 'One'), said('u2', 'r1', 'Faster'), ...reply('m2', 'r1', 2, 'Two', 2), ['run', { run: 'r1', patch: { data: { plan: { rev: 1 } } } }]);
    expect(build(state).turns.map((turn) => turn.data)).toEqual([undefined, { plan: { rev: 1 } }, undefined, undefined]);
  });
});
