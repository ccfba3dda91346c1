/**
 * What was typed and not sent, by conversation, and what was sent and not accepted yet. Both survive a reload.
 *
 * An outbox entry carries its idempotency key: sending it again, from this page or from the next one, has one effect.
 */
import { load, store } from './storage';

/** The draft of a chat that does not exist yet. */
export const NEW = 'new';

/** An entry older than this is not sent by itself any more: its text goes back into the draft. */
const RESEND_MS = 5 * 60_000;
const MAX_DRAFTS = 100;

export function readDraft(conv: string | null): string {
  return load<Record<string, string>>('drafts', {})[conv ?? NEW] ?? '';
}

export function writeDraft(conv: string | null, text: string): void {
  const drafts = load<Record<string, string>>('drafts', {});
  delete drafts[conv ?? NEW];
  if (text !== '') drafts[conv ?? NEW] = text;
  store('drafts', Object.fromEntries(Object.entries(drafts).slice(-MAX_DRAFTS)));
}

export interface OutboxEntry {
  key: string;
  conv: string | null;
  text: string;
  when: 'queue' | 'steer' | 'interrupt';
  ts: number;
}

export function readOutbox(): OutboxEntry[] {
  return load<OutboxEntry[]>('outbox', []);
}

export function addToOutbox(entry: OutboxEntry): void {
  store('outbox', [...readOutbox().filter((e) => e.key !== entry.key), entry]);
}

export function dropFromOutbox(key: string): void {
  store('outbox', readOutbox().filter((e) => e.key !== key));
}

/** What an earlier page left: what is young enough is answered, to be sent again; the rest becomes draft again. */
export function takeLeftovers(now: number): OutboxEntry[] {
  const young: OutboxEntry[] = [];
  for (const entry of readOutbox()) {
    if (now - entry.ts < RESEND_MS) young.push(entry);
    else {
      dropFromOutbox(entry.key);
      writeDraft(entry.conv, joinDraft(readDraft(entry.conv), entry.text));
    }
  }
  return young;
}

/** A text that comes back to a draft stands before what was typed since. */
export function joinDraft(draft: string, returning: string): string {
  return draft.trim() === '' ? returning : `${returning}\n\n${draft}`;
}
