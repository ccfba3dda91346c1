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
