import type { Message } from '@sag/client';
import { describe, expect, it } from 'vitest';
import { budgetWords, contextOf, costWords, dayOf, fillDays, gaugeOf, labelled, lastDays, ticksOf, tokensPerSecond, type UsageRow } from '../src/lib/usage';

const NOON = Date.UTC(2026, 10, 21, 12);
const row = (some: Partial<UsageRow>): UsageRow => ({ key: '', steps: 1, input: 0, output: 0, reasoning: 0, cached: 0, cache_write: 0, unpriced: 0, ...some });

describe('cost in words', () => {
  it('is never nothing where the price is not known', () => {
    expect(costWords(row({ steps: 3, unpriced: 3 }))).toEqual({ cost: 'Price not known', lacking: '' });
    expect(costWords(row({ steps: 3, unpriced: 1, cost_usd: 0.5 }))).toEqual({ cost: 'at least $0.50', lacking: 'price not known for 1 of 3 steps' });
    expect(costWords(row({ steps: 3, unpriced: 0, cost_usd: 0.5 }))).toEqual({ cost: '$0.50', lacking: '' });
    expect(costWords(row({ steps: 2, unpriced: 0, cost_usd: 0 }))).toEqual({ cost: '$0', lacking: '' });
    expect(costWords(row({ steps: 0 }))).toEqual({ cost: '$0', lacking: '' });
  });
});

describe('budgets in words', () => {
  it('say what is left, the shortest span first', () => {
    const words = budgetWords({
      month: { limit_usd: 50, spent_usd: 60, resets_at: NOON },
      day: { limit_usd: 5, spent_usd: 1.2, resets_at: NOON },
      day_tokens: { limit_tokens: 100_000, spent_tokens: 75_000, resets_at: NOON },
    });
    expect(words.map(({ name, left, share }) => [name, left, share])).toEqual([
      ['Today', '$3.80 left of $5.00', 0.24],
      ['Tokens today', '25k left of 100k', 0.75],
      ['This month', 'used up: $50.00', 1],
    ]);
    expect(budgetWords(undefined)).toEqual([]);
    expect(budgetWords({ day: { limit_usd: 0, spent_usd: 0, resets_at: NOON } })[0]!.share).toBe(1);
  });
});

describe('the gauge of the context', () => {
  const message = (msg: string, usage?: Message['usage']): Message => ({ msg, role: 'assistant', parts: [], ...(usage ? { usage } : {}) });

  it('takes what the newest answer sent and wrote', () => {
    expect(contextOf([message('a', { input: 10, output: 5 }), message('b', { input: 100, output: 20 }), message('c')])).toEqual({ msg: 'b', tokens: 120 });
    expect(contextOf([message('a'), message('b', { input: 0, output: 0 })])).toBeNull();
  });

  it('warns as it fills, and says nothing where the size is not known', () => {
    expect(gaugeOf(12_800, 128_000)).toEqual({ share: 0.1, percent: 10, tone: 'ok' });
    expect(gaugeOf(96_000, 128_000)?.tone).toBe('warn');
    expect(gaugeOf(130_000, 128_000)).toEqual({ share: 1, percent: 100, tone: 'full' });
    expect(gaugeOf(500, undefined)).toBeNull();
  });
});

describe('speed', () => {
  it('is tokens written in a second, where that can be told', () => {
    expect(tokensPerSecond({ input: 9, output: 100 }, 2000)).toBe(50);
    expect(tokensPerSecond({ input: 9, output: 0 }, 2000)).toBeNull();
    expect(tokensPerSecond({ input: 9, output: 100 }, undefined)).toBeNull();
    expect(tokensPerSecond(undefined, 2000)).toBeNull();
  });
});

describe('the chart', () => {
  it('has every day of its span, by UTC, over ends of months', () => {
    expect(lastDays(3, Date.UTC(2026, 2, 1, 23, 59))).toEqual(['2026-02-27', '2026-02-28', '2026-03-01']);
    expect(dayOf(NOON)).toBe('2026-11-21');
    const days = fillDays([row({ key: '2026-11-20', cost_usd: 2 }), row({ key: '2026-10-01', cost_usd: 9 })], 3, NOON);
    expect(days.map(({ key, cost_usd, steps }) => [key, cost_usd, steps])).toEqual([
      ['2026-11-19', undefined, 0], ['2026-11-20', 2, 1], ['2026-11-21', undefined, 0],
    ]);
  });

  it.each([
    [0, [0, 1]],
    [1, [0, 0.25, 0.5, 0.75, 1]],
    [3.7, [0, 1, 2, 3, 4]],
    [0.0123, [0, 0.005, 0.01, 0.015]],
    [1_234_567, [0, 500_000, 1_000_000, 1_500_000]],
  ])('up to %d has the ticks %j', (max, ticks) => {
    expect(ticksOf(max)).toEqual(ticks);
  });

  it.each([0.003, 0.7, 1, 9.99, 42, 1e6, 123_456_789])('reaches %d with three to six round ticks', (max) => {
    const ticks = ticksOf(max);
    expect(ticks.at(-1)).toBeGreaterThanOrEqual(max);
    expect(ticks.length).toBeGreaterThanOrEqual(3);
    expect(ticks.length).toBeLessThanOrEqual(6);
  });

  it('labels as many days as there is room for, today among them', () => {
    expect(labelled(7, 10)).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(labelled(30, 6)).toEqual([4, 9, 14, 19, 24, 29]);
    expect(labelled(30, 0)).toEqual([29]);
  });
});
