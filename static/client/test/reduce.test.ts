import { describe, expect, test } from 'vitest';
import { emptyConv, mergePatch, reduceConv } from '../src/index';
import { reducerOf } from '../src/reduce';
import { foldTo, startOf, transcripts } from './fakes';

describe('the fold of a transcript is its end', () => {
  for (const transcript of transcripts()) {
    test(transcript.name, () => {
      expect(foldTo(transcript, Infinity)).toEqual(transcript.end);
    });
  }

  test('and there are transcripts', () => expect(transcripts().length).toBeGreaterThanOrEqual(8));
});

test('a fold leaves the events as they were, so that they can be folded again', () => {
  for (const transcript of transcripts()) {
    const before = structuredClone(transcript.events);
    const state = startOf(transcript);
    for (const { e, d } of transcript.events) reducerOf(transcript.topic)!(state, e, d);
    expect(transcript.events).toEqual(before);
  }
});

test('merged deltas and a superseded progress fold to the same state', () => {
  const state = emptyConv('c1');
  reduceConv(state, 'message.add', { msg: 'm1', role: 'assistant', parts: [] });
  reduceConv(state, 'part.open', { part: 1, msg: 'm1', run: 'r1', kind: 'text' });
  const other = structuredClone(state);
  for (const d of [[1, 'a'], [1, 'b', 1, 'c']]) reduceConv(state, 'delta', d);
  reduceConv(other, 'delta', [1, 'abc']);
  expect(state).toEqual(other);
});

test('a closed step is told by its message, with the model that made it, and counts for the run', () => {
  const state = emptyConv('c1');
  const usage = { input: 9, output: 3, cost_usd: 0.5 };
  for (const [e, d] of [
    ['run.open', { run: 'r1', kind: 'chat', config: {}, rev: 1, status: 'running' }],
    ['step.open', { run: 'r1', step: 1, model: 'a/one' }],
    ['message.add', { msg: 'm1', role: 'assistant', run: 'r1', step: 1, parts: [] }],
    ['step.close', { run: 'r1', step: 1, finish: 'fallback', usage, error: { kind: 'provider.timeout', message: 'Slow', retry: true } }],
    ['step.open', { run: 'r1', step: 2, model: 'b/two' }],
    ['message.add', { msg: 'm2', role: 'assistant', run: 'r1', step: 2, parts: [] }],
    ['step.close', { run: 'r1', step: 2, finish: 'stop', usage, ms: 1200, request: 'q2' }],
  ] as [string, any][]) reduceConv(state, e, d);
  expect(state.messages).toMatchObject([
    { msg: 'm1', model: 'a/one', finish: 'fallback', error: { message: 'Slow' } },
    { msg: 'm2', model: 'b/two', finish: 'stop', usage, ms: 1200, request: 'q2' },
  ]);
  expect(state.runs.r1).toMatchObject({ usage: { input: 18, output: 6, cost_usd: 1 }, model: 'b/two' });
});

test('a run that ends waits for nothing any more', () => {
  const state = emptyConv('c1');
  reduceConv(state, 'run.open', { run: 'r1', kind: 'chat', config: {}, rev: 1, status: 'running' });
  reduceConv(state, 'run', { run: 'r1', patch: { status: 'waiting', after_ms: 900, why: { kind: 'provider.timeout', message: 'Slow', attempt: 2, of: 3, ts: 1 } } });
  expect(state.runs.r1).toMatchObject({ status: 'waiting', after_ms: 900, why: { attempt: 2 } });
  reduceConv(state, 'run.close', { run: 'r1', status: 'cancelled', usage: { input: 0, output: 0 } });
  expect(state.runs.r1).not.toHaveProperty('after_ms');
  expect(state.runs.r1).not.toHaveProperty('why');
});

test('events about what is not known change nothing', () => {
  const state = emptyConv('c1');
  const unknown: [string, any][] = [
    ['message.drop', { msg: 'm' }], ['run', { run: 'r', patch: { status: 'x' } }], ['run.close', { run: 'r', status: 'done' }],
    ['step.open', { run: 'r', step: 1 }], ['step.close', { run: 'r', step: 1, usage: { input: 1 } }], ['delta', [1, 'x']],
    ['part.open', { part: 1, run: 'r', msg: 'm', kind: 'text' }], ['part.close', { part: 1, len: 1 }], ['part.drop', { part: 1 }],
    ['tool.progress', { call: 'k', done: 1 }], ['tool.close', { call: 'k', status: 'ok' }], ['ask.close', { ask: 'a', args: {} }],
    ['config', { scope: 'run:r', rev: 2, patch: { a: 1 } }], ['config', { scope: 'client:x', rev: 2, patch: { a: 1 } }],
    ['config.applied', { scope: 'run:r', rev: 2, step: 1 }], ['toString', {}], ['brand.new', { a: 1 }],
  ];
  for (const [e, d] of unknown) reduceConv(state, e, d);
  expect(state).toEqual(emptyConv('c1'));
});

test.each([
  [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
  [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
  [{ a: 'b' }, { a: null }, {}],
  [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
  [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
  [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
  [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
  [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
  [['a', 'b'], ['c', 'd'], ['c', 'd']],
  [{ a: 'b' }, ['c'], ['c']],
  [{ a: 'foo' }, 'bar', 'bar'],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: 'b', c: null }, { a: 'b' }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
])('merge patch of RFC 7396, appendix A: %j with %j', (target, patch, result) => {
  const before = structuredClone([target, patch]);
  expect(mergePatch(target, patch)).toEqual(result);
  expect([target, patch]).toEqual(before);
});
