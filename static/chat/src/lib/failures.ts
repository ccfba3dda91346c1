/** Why a reply failed or waits, as a person reads it: what it is, and what to do. Pure. */
import type { RunFault, Waiting } from '@sag/client';

export interface Failure {
  title: string;
  advice: string;
  /** The words of the hub or of the vendor, for whoever wants to know; empty where the advice says it all. */
  detail: string;
  /** The same again may help. */
  retry: boolean;
  /** Another model may help. */
  otherModel: boolean;
}

type Words = [title: string, advice: string, otherModel: boolean];

const WORDS: Record<string, Words> = {
  'provider.auth': ['The key is refused', 'The model’s server does not accept the key of this hub. Whoever runs the hub has to check it.', true],
  'provider.rate_limit': ['Too many requests', 'The model’s server limits the rate. Wait for a moment, or take another model.', true],
  'provider.overloaded': ['The model is overloaded', 'Its server has too much to do right now. Wait for a moment, or take another model.', true],
  'provider.context': [
    'Too long for this model',
    'The conversation does not fit. Take a model with a larger context, or begin a new chat with less in it.',
    true,
  ],
  'provider.unreachable': ['The model cannot be reached', 'Its server does not answer at all. It may be down, or the hub has no way to it.', true],
  'provider.refused': ['The request is refused', 'The model’s server does not take it: a setting, a file or the text does not suit this model.', true],
  'provider.disconnected': ['The answer broke off', 'The model’s server dropped the connection before the answer was complete.', true],
  'provider.truncated': ['The answer broke off', 'The model’s server stopped before the answer was complete.', true],
  'provider.protocol': ['The answer makes no sense', 'What answers there does not speak as a model’s server does. Whoever runs the hub has to check its address.', true],
  'provider.timeout': ['The model took too long', 'It did not answer in time. It may be busy, or the task is large.', true],
  'model.unknown': ['This model is not there', 'No provider of this hub offers it any more.', true],
  'store.full': ['The disk of the hub is full', 'Nothing can be kept until there is room again.', false],
  'run.failed': ['A fault of the hub', 'Something went wrong in the hub itself. Its log says more.', false],
};

/** A run's error in words. A kind that is not known is told in the words that came with it. */
export function explainFailure(error: RunFault | undefined): Failure {
  if (!error) return { title: 'The reply failed', advice: '', detail: '', retry: true, otherModel: false };
  const { kind, message, retry } = error;
  const words = WORDS[kind];
  if (!words) return { title: 'The reply failed', advice: message, detail: '', retry, otherModel: kind.startsWith('provider.') };
  const [title, advice, otherModel] = words;
  return { title, advice, detail: message, retry, otherModel };
}

/** How a run ended at a limit. Its message says which one: rounds, calls of a step, or a budget. */
export function explainLimit(error: RunFault | undefined): { title: string; advice: string; isBudget: boolean } {
  const isBudget = /budget/i.test(`${error?.kind ?? ''} ${error?.message ?? ''}`);
  return { title: isBudget ? 'The budget is used up' : 'Ended at its limit', advice: error?.message ?? '', isBudget };
}

/** Why a model is asked again, in short. */
const AGAIN: Record<string, string> = {
  'provider.rate_limit': 'The model’s server limits the rate.',
  'provider.overloaded': 'The model’s server is overloaded.',
  'provider.unreachable': 'The model’s server cannot be reached.',
  'provider.timeout': 'The model did not answer in time.',
  'provider.disconnected': 'The answer broke off.',
  'provider.truncated': 'The answer broke off.',
};

/**
 * What the hub waits for, with the time that is left. Before the first attempt nothing has failed: the hub says itself why.
 *
 * @param leftMs Null where nobody knows how long it takes.
 */
export function waitingWords(why: Waiting, leftMs: number | null): string {
  const turn = why.attempt > 1 ? ` (attempt ${why.attempt} of ${why.of})` : '';
  const again = why.attempt > 1 ? 'Trying again' : 'Asking';
  const seconds = leftMs === null ? null : Math.ceil(leftMs / 1000);
  const when = seconds === null ? 'as soon as it is our turn' : seconds > 0 ? `in ${seconds} s` : 'now';
  const what = (why.attempt > 1 && AGAIN[why.kind]) || sentence(why.message);
  return `${what} ${again} ${when}${turn}.`;
}

function sentence(text: string): string {
  const trimmed = text.trim();
  return /[.!?…]$/.test(trimmed) ? trimmed : `${trimmed}.`;
}
