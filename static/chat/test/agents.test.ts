import type { RunState, ToolState } from '@sag/client';
import { describe, expect, it } from 'vitest';
import { botsOf, lineOf, speakersOf, titled } from '../src/lib/agents';

function run(more: Partial<RunState> = {}): RunState {
  return { kind: 'dialogue', status: 'running', step: 0, rev: 1, config: {}, usage: { input: 0, output: 0 }, ...more };
}

function call(more: Partial<ToolState>): ToolState {
  return { run: 'r1', name: 'hand_over', origin: 'workflow', args: {}, status: 'ok', ends: true, agent: 'triage', ...more };
}

describe('speakers', () => {
  it('of a dialogue of two stand on two sides, by what people call them now', () => {
    const speakers = speakersOf(run({ config: { bots: { b0: { name: 'Ada' }, b1: { name: 'Ben' } } }, titles: { b1: 'Bob' } }));
    expect([...speakers.values()].map(({ id, name, side, colour }) => [id, name, side, colour])).toEqual([['b0', 'Ada', 'left', 1], ['b1', 'Bob', 'right', 2]]);
  });

  it('of three stand on one side, each with a colour of its own; so does a moderator', () => {
    const speakers = speakersOf(run({ config: { bots: { b0: {}, b1: {}, b2: {} } }, agents: { moderator: 'closed', b0: 'open' }, titles: { moderator: 'Moderator' } }));
    expect([...speakers.values()].map(({ name, side, colour }) => [name, side, colour])).toEqual([['B0', 'left', 1], ['B1', 'left', 2], ['B2', 'left', 3], ['Moderator', 'left', 4]]);
  });

  it('keep their sides while a moderator is there besides', () => {
    const speakers = speakersOf(run({ config: { bots: { b0: {}, b1: {} } }, agents: { moderator: 'open' } }));
    expect(speakers.get('b1')!.side).toBe('right');
  });

  it('of another go at something have the colour of the first one', () => {
    const speakers = speakersOf(run({ kind: 'plan', agents: { planner: 'closed', cost: 'closed', 'planner.2': 'open', 'cost.2': 'open' }, titles: { planner: 'Planner', 'planner.2': 'Planner' } }));
    expect([...speakers.values()].map((one) => one.colour)).toEqual([1, 2, 1, 2]);
    expect([...speakers.values()].every((one) => one.side === 'left')).toBe(true);
  });

  it('are what the layers below the run say of them, too', () => {
    expect(botsOf({ config: { bots: { b1: { temperature: 0.2 } } }, base: { bots: { b1: { name: 'Ben', temperature: 1 } } } })).toEqual({ b1: { name: 'Ben', temperature: 0.2 } });
  });

  it('have readable ids where nobody named them', () => {
    expect(titled('billing_desk')).toBe('Billing desk');
  });
});

describe('a line', () => {
  const speakers = speakersOf(run({ kind: 'triage', agents: { triage: 'closed', billing: 'open' }, titles: { triage: 'Triage', billing: 'Billing' } }));

  it('tells who hands over to whom', () => {
    expect(lineOf(call({ args: { agent: 'billing', note: 'an invoice' } }), speakers)).toEqual({ who: { name: 'Triage', colour: 1 }, to: { name: 'Billing', colour: 2 }, text: 'an invoice' });
    expect(lineOf(call({ args: { agent: 'repairs', note: '' } }), speakers)!.to).toEqual({ name: 'Repairs', colour: 0 });
  });

  it('tells of plans, and of what cannot be done', () => {
    expect(lineOf(call({ name: 'make_plan', args: { steps: [{}, {}] } }), speakers)!.text).toBe('made a plan of 2 steps');
    expect(lineOf(call({ name: 'revise_plan', args: { steps: [] } }), speakers)!.text).toBe('changed the plan: nothing is left to do');
    expect(lineOf(call({ name: 'give_up', args: { reason: 'no price' } }), speakers)!.text).toBe('gave up: no price');
  });

  it('is none where the call failed, does not end a turn, or is none that is known', () => {
    const args = { agent: 'billing', note: '' };
    expect(lineOf(call({ args, status: 'invalid' }), speakers)).toBeNull();
    const { ends: _, ...open } = call({ args });
    expect(lineOf(open, speakers)).toBeNull();
    expect(lineOf(call({ name: 'verdict', args: { winner: 'b0' } }), speakers)).toBeNull();
    expect(lineOf(call({ args: 'not JSON' }), speakers)).toBeNull();
  });
});
