import { describe, expect, it } from 'vitest';
import { explainFailure, explainLimit, waitingWords } from '../src/lib/failures';

const PROVIDER = ['auth', 'rate_limit', 'overloaded', 'context', 'unreachable', 'refused', 'disconnected', 'truncated', 'protocol', 'timeout'];

describe('a failure in words', () => {
  it.each(PROVIDER)('has a title, an advice and the vendor’s own words apart, for provider.%s', (name) => {
    const failure = explainFailure({ kind: `provider.${name}`, message: 'vendor says no', retry: false });
    expect(failure.title).not.toBe('');
    expect(failure.title).not.toBe('The reply failed');
    expect(failure.advice).not.toContain('vendor says no');
    expect(failure.detail).toBe('vendor says no');
    expect(failure.otherModel).toBe(true);
  });

  it('offers to try again where the hub says that it may help', () => {
    expect(explainFailure({ kind: 'provider.rate_limit', message: '', retry: true }).retry).toBe(true);
    expect(explainFailure({ kind: 'provider.rate_limit', message: '', retry: false }).retry).toBe(false);
  });

  it('of a kind that is not known is told in the words that came', () => {
    expect(explainFailure({ kind: 'dice.loaded', message: 'The dice are loaded.', retry: false })).toEqual({
      title: 'The reply failed', advice: 'The dice are loaded.', detail: '', retry: false, otherModel: false,
    });
    expect(explainFailure({ kind: 'provider.novel', message: 'New.', retry: true }).otherModel).toBe(true);
    expect(explainFailure(undefined)).toMatchObject({ title: 'The reply failed', retry: true });
  });
});

describe('a limit in words', () => {
  it('tells a budget from the caps of a run', () => {
    const budget = explainLimit({ kind: 'run.limit', message: 'The budget of $5.00 a day is used up; it begins anew at 00:00 UTC.', retry: false });
    expect([budget.title, budget.isBudget]).toEqual(['The budget is used up', true]);
    const rounds = explainLimit({ kind: 'run.limit', message: 'The run has used its 5 model rounds.', retry: false });
    expect([rounds.title, rounds.advice, rounds.isBudget]).toEqual(['Ended at its limit', 'The run has used its 5 model rounds.', false]);
  });
});

describe('waiting in words', () => {
  const why = { kind: 'provider.rate_limit', message: 'The server answers 429: slow down', attempt: 2, of: 3, ts: 1 };

  it('counts down in whole seconds', () => {
    expect(waitingWords(why, 6_100)).toBe('The model’s server limits the rate. Trying again in 7 s (attempt 2 of 3).');
    expect(waitingWords(why, 0)).toBe('The model’s server limits the rate. Trying again now (attempt 2 of 3).');
  });

  it('uses the words that came where the kind is not known', () => {
    expect(waitingWords({ ...why, kind: 'provider.protocol', message: 'It answers with HTML' }, 100)).toBe('It answers with HTML. Trying again in 1 s (attempt 2 of 3).');
  });

  it('says that a turn is awaited where nobody knows how long', () => {
    expect(waitingWords({ ...why, message: 'Other calls to this model go first.', attempt: 1 }, null)).toBe(
      'Other calls to this model go first. Asking as soon as it is our turn.',
    );
  });
});
