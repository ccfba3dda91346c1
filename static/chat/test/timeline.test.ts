import type { Message, RunState, ToolState } from '@sag/client';
import { describe, expect, it } from 'vitest';
import { placeOf, rowsOf, ticksOfTime, timelineOf, tookWords, type RunParts } from '../src/lib/timeline';

const T = 1_795_190_000_000;

function message(msg: string, at: number, more: Partial<Message> = {}): Message {
  return { msg, role: 'assistant', run: 'r1', ts: T + at, parts: [], ...more };
}

function step(number: number, agent: string | null, at: number, ms: number): Message {
  return message(`m${number}`, at, { agent, step: number, ms, finish: 'stop', model: 'a/m', usage: { input: 12, output: 3 } });
}

function tool(at: number, ms: number, more: Partial<ToolState> = {}): ToolState {
  return { run: 'r1', name: 'look_up', origin: 'x', args: {}, status: 'ok', ts: T + at, ms, ...more };
}

function parts(messages: Message[], tools: Record<string, ToolState> = {}, run: Partial<RunState> = {}): RunParts {
  return { run: { kind: 'plan', status: 'done', step: 1, rev: 1, config: {}, usage: { input: 0, output: 0 }, ...run }, messages, tools };
}

const drawn = (given: RunParts, now = T) => timelineOf(given, now, (model) => model.toUpperCase());

describe('a timeline', () => {
  it('has a lane for people and one for each agent, in the order in which they began', () => {
    const timeline = drawn(parts(
      [message('u1', 0, { role: 'user', parts: [{ kind: 'text', text: 'Go', open: false }] }), step(1, 'b', 10, 100), step(2, 'a', 120, 50)],
      { k1: tool(110, 20, { agent: 'b' }) },
      { agents: { a: 'closed', b: 'closed' }, titles: { a: 'Ada', b: 'Ben' }, changes: [{ rev: 2, patch: { temperature: 0.2 }, by: 'u1', ts: T + 115, step: 1 }] },
    ));
    expect(timeline.lanes.map((lane) => [lane.name, lane.rows, lane.events.map((event) => event.title)])).toEqual([
      ['You', 1, ['Said', 'Temperature 0.2']], ['Ben', 2, ['Step 1', 'Look up']], ['Ada', 1, ['Step 2']],
    ]);
    expect([timeline.from - T, timeline.to - T, timeline.length, timeline.isOpen]).toEqual([0, 170, 170, false]);
    expect(timeline.lanes[1]!.events[0]!.facts).toEqual(['A/M', '12 tokens in, 3 out']);
    expect(rowsOf(timeline).map(({ event }) => event.key)).toEqual(['said-u1', 'step-m1', 'tool-k1', 'patch-2', 'step-m2']);
  });

  it('grows while the run goes on', () => {
    const open = message('m1', 0, { step: 1, agent: null });
    const given = parts([open], { k1: tool(0, 0, { status: 'running' }) }, { status: 'running', open_steps: { 1: { model: 'a/m' } } });
    const timeline = drawn(given, T + 5000);
    expect(timeline.to - T).toBe(5000);
    expect(timeline.lanes[0]!.events.map((event) => [event.isOpen, event.to - T, tookWords(event)])).toEqual([[true, 5000, '5.0 s so far'], [true, 5000, '5.0 s so far']]);
    expect(timeline.lanes[0]!.events[0]!.facts).toEqual(['A/M']);
  });

  it('keeps what takes time in one lane apart in rows', () => {
    const calls = { k1: tool(0, 100), k2: tool(10, 100), k3: tool(120, 10) };
    const [lane] = drawn(parts([step(1, null, 0, 5)], calls)).lanes;
    expect(lane!.events.map((event) => [event.key, event.row])).toEqual([['step-m1', 0], ['tool-k1', 1], ['tool-k2', 2], ['tool-k3', 1]]);
  });

  it('shows a question for as long as it waits, and a call from when it was allowed', () => {
    const asked = [{ ask: 'a1', kind: 'approval', title: 'Send?', call: 'k1', ts: T + 10, choice: 'allow_once', by: 'u1' }, { ask: 'a2', kind: 'choice', title: 'Go on?', name: 'go', ts: T + 3000 }];
    const given = parts([step(1, null, 0, 10), step(2, null, 2000, 10)], { k1: tool(10, 400) }, { status: 'waiting', asked });
    const timeline = drawn(given, T + 4000);
    const [people, assistant] = timeline.lanes;
    expect(people!.events.map((event) => [event.from - T, event.to - T, event.isOpen, event.facts[0]])).toEqual([[10, 1600, false, 'Allow once'], [3000, 4000, true, 'waiting']]);
    expect(assistant!.events.find((event) => event.kind === 'tool')).toMatchObject({ from: T + 1600, to: T + 2000 });
  });

  it('is shortened where nobody worked for long', () => {
    const day = 86_400_000;
    const timeline = drawn(parts([step(1, null, 0, 1000), step(2, null, day, 1000)]));
    expect(timeline.breaks).toEqual([{ from: T + 1000, ms: day - 1000 }]);
    expect(timeline.length).toBe(2500);
    expect([0, 1000, day, day + 1000].map((at) => placeOf(timeline, T + at))).toEqual([0, 0.4, 0.6, 1]);
    const ticks = ticksOfTime(timeline, 5);
    expect(ticks.map((tick) => tick.at - T).every((at) => at <= 1000 || at >= day)).toBe(true);
    expect(ticks[0]).toEqual({ at: T, label: '0' });
  });

  it('tells of a round that was cut, though the run goes on again', () => {
    const cut = message('m1', 0, { step: 1, parts: [{ kind: 'text', open: false, ts: T + 300 }] });
    const again = message('m2', 9000, { step: 2 });
    const [lane] = drawn(parts([cut, again], {}, { status: 'running', open_steps: { 2: { model: 'a/m' } } }), T + 9500).lanes;
    expect(lane!.events.map((event) => [event.isOpen, event.to - event.from, event.tone, event.facts])).toEqual([[false, 300, 'quiet', ['cut']], [true, 500, 'plain', ['A/M']]]);
  });

  it('of a run without anything is empty', () => {
    const timeline = drawn(parts([]));
    expect([timeline.lanes, placeOf({ ...timeline, to: 0 }, 5)]).toEqual([[], 0]);
  });

  it('marks what went wrong', () => {
    const [lane] = drawn(parts([{ ...step(1, null, 0, 5), finish: 'failed' }], { k1: tool(5, 5, { status: 'lost', repeated: 'k2' }), k2: tool(20, 5, { status: 'denied' }) })).lanes;
    expect(lane!.events.map((event) => [event.tone, event.facts.at(-1)])).toEqual([['bad', 'failed'], ['bad', 'made again later'], ['quiet', 'denied']]);
  });
});
