/** What replies took: tokens, cost, how full a model's context is, and the scale of the chart of it. Pure. */
import type { Message, Operations, Usage } from '@sag/client';
import { formatCost, formatCount } from './format';

/** The answer to `usage.get`. */
export type UsageAnswer = Operations['usage.get']['result'];
export type UsageRow = UsageAnswer['rows'][number];
export type UsageTotal = UsageAnswer['total'];

export interface BudgetWords {
  name: string;
  /** What is left of how much, and when it begins anew. */
  left: string;
  resets: string;
  /** What is spent, from 0 to 1. */
  share: number;
}

/** The budgets in words, the shortest span first. */
export function budgetWords(budget: UsageAnswer['budget']): BudgetWords[] {
  const words = (name: string, spent: number, limit: number, resets_at: number, format: (n: number) => string): BudgetWords => ({
    name,
    left: spent >= limit ? `used up: ${format(limit)}` : `${format(limit - spent)} left of ${format(limit)}`,
    resets: new Date(resets_at).toLocaleString(undefined, { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' }),
    share: limit > 0 ? Math.min(1, spent / limit) : 1,
  });
  const { day, month, day_tokens: tokens } = budget ?? {};
  return [
    ...(day ? [words('Today', day.spent_usd, day.limit_usd, day.resets_at, formatCost)] : []),
    ...(tokens ? [words('Tokens today', tokens.spent_tokens, tokens.limit_tokens, tokens.resets_at, formatCount)] : []),
    ...(month ? [words('This month', month.spent_usd, month.limit_usd, month.resets_at, formatCost)] : []),
  ];
}

/** The cost of some steps in words, and how many of them are not in it. */
export function costWords({ cost_usd, unpriced, steps }: Pick<UsageTotal, 'cost_usd' | 'unpriced' | 'steps'>): { cost: string; lacking: string } {
  if (steps === 0) return { cost: formatCost(0), lacking: '' };
  if (unpriced >= steps) return { cost: 'Price not known', lacking: '' };
  const lacking = unpriced === 0 ? '' : `price not known for ${unpriced} of ${steps} steps`;
  return { cost: `${lacking ? 'at least ' : ''}${formatCost(cost_usd ?? 0)}`, lacking };
}

export function shareWords(part: number, whole: number): string {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : '';
}

/** Tokens written in a second; null where it went too fast to tell. */
export function tokensPerSecond(usage: Usage | undefined, ms: number | undefined): number | null {
  return usage && ms !== undefined && ms >= 100 && usage.output > 0 ? usage.output / (ms / 1000) : null;
}

// ------------------------------------------------------------------ context

/** What the newest answer left in the model's context: all that was sent, and what came. */
export function contextOf(messages: readonly Message[]): { msg: string; tokens: number } | null {
  for (let at = messages.length - 1; at >= 0; at--) {
    const { msg, usage } = messages[at]!;
    if (usage && usage.input + usage.output > 0) return { msg, tokens: usage.input + usage.output };
  }
  return null;
}

export interface Gauge {
  /** From 0 to 1. */
  share: number;
  percent: number;
  tone: 'ok' | 'warn' | 'full';
}

/** How full a context is; null where its size is not known. */
export function gaugeOf(tokens: number, context: number | undefined): Gauge | null {
  if (!context) return null;
  const share = Math.min(1, tokens / context);
  return { share, percent: Math.round(share * 100), tone: share >= 0.9 ? 'full' : share >= 0.7 ? 'warn' : 'ok' };
}

// -------------------------------------------------------------------- chart

const DAY_MS = 86_400_000;

/** The day of a time, as the hub names days: by UTC. */
export function dayOf(ts: number): string {
  return new Date(ts).toISOString().slice(0, 10);
}

/** So many days, the last of which is the day of `now`. */
export function lastDays(count: number, now: number): string[] {
  return Array.from({ length: count }, (_, i) => dayOf(now - (count - 1 - i) * DAY_MS));
}

/** A row for each of so many days up to that of `now`: those without a step are empty. */
export function fillDays(rows: UsageRow[], days: number, now: number): UsageRow[] {
  const known = new Map(rows.map((row) => [row.key, row]));
  const empty = { steps: 0, input: 0, output: 0, reasoning: 0, cached: 0, cache_write: 0, unpriced: 0 };
  return lastDays(days, now).map((key) => known.get(key) ?? { key, ...empty });
}

export function dayWords(key: string, style: 'short' | 'long' = 'short'): string {
  const options: Intl.DateTimeFormatOptions = { timeZone: 'UTC', day: 'numeric', month: 'short' };
  if (style === 'long') options.weekday = 'short';
  return new Date(`${key}T00:00:00Z`).toLocaleDateString(undefined, options);
}

/** Round values from 0 to at least `max`, three to six of them. */
export function ticksOf(max: number): number[] {
  if (!(max > 0)) return [0, 1];
  const rough = max / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * (1 - 1e-9))!;
  const count = Math.ceil(max / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

/** Which of so many days get a label, where so many fit; the last one always does. */
export function labelled(count: number, room: number): number[] {
  const every = Math.max(1, Math.ceil(count / Math.max(1, room)));
  return Array.from({ length: count }, (_, i) => i).filter((i) => (count - 1 - i) % every === 0);
}
