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

/** A file that the hub has. */
export interface FileRef {
  ref: string;
  mime: string;
  name: string;
  /** In bytes; unknown where the file comes back out of a message. */
  size?: number;
}

/** A message that is not sent yet. */
export interface Draft {
  text: string;
  files: FileRef[];
  /** The model of this one message. */
  model: string | null;
  /** What a chat that does not exist yet is to begin with, as a config document. */
  config: Record<string, unknown>;
  /** The kind of run that it is to be; null for that of the conversation. */
  kind: string | null;
  /** What was set up for runs of kinds, by kind. */
  setups: Record<string, Record<string, unknown>>;
}

export function newDraft({ text = '', files = [], model = null, config = {}, kind = null, setups = {} }: Partial<Draft> = {}): Draft {
  return { text, files, model, config, kind, setups };
}

export function isEmptyDraft(draft: Draft): boolean {
  const isPlain = draft.model === null && draft.kind === null && Object.keys(draft.config).length === 0 && Object.keys(draft.setups).length === 0;
  return draft.text === '' && draft.files.length === 0 && isPlain;
}

export function readDraft(conv: string | null): Draft {
  return newDraft(load<Record<string, Partial<Draft>>>('drafts', {})[conv ?? NEW]);
}

export function writeDraft(conv: string | null, draft: Draft): void {
  const drafts = load<Record<string, Draft>>('drafts', {});
  delete drafts[conv ?? NEW];
  if (!isEmptyDraft(draft)) drafts[conv ?? NEW] = draft;
  store('drafts', Object.fromEntries(Object.entries(drafts).slice(-MAX_DRAFTS)));
}

export interface OutboxEntry extends Draft {
  key: string;
  conv: string | null;
  when: 'queue' | 'steer' | 'interrupt';
  ts: number;
  /** Files of it were still on their way: they are not among `files`, and without them it is not sent. */
  incomplete?: boolean;
}

export function readOutbox(): OutboxEntry[] {
  return load<OutboxEntry[]>('outbox', []).map((entry) => ({ ...entry, ...newDraft(entry) }));
}

export function addToOutbox(entry: OutboxEntry): void {
  store('outbox', [...readOutbox().filter((e) => e.key !== entry.key), entry]);
}

export function dropFromOutbox(key: string): void {
  store('outbox', readOutbox().filter((e) => e.key !== key));
}

/** What an earlier page left: what is young and whole is answered, to be sent again; the rest becomes draft again. */
export function takeLeftovers(now: number): OutboxEntry[] {
  const young: OutboxEntry[] = [];
  for (const entry of readOutbox()) {
    if (now - entry.ts < RESEND_MS && !entry.incomplete) young.push(entry);
    else {
      dropFromOutbox(entry.key);
      writeDraft(entry.conv, joinDraft(readDraft(entry.conv), entry));
    }
  }
  return young;
}

/** What comes back to a draft stands before what was typed since; what was chosen since holds. */
export function joinDraft(draft: Draft, returning: Draft): Draft {
  return {
    text: joinTexts(draft.text, returning.text),
    files: [...returning.files, ...draft.files],
    model: draft.model ?? returning.model,
    config: { ...returning.config, ...draft.config },
    kind: draft.kind ?? returning.kind,
    setups: { ...returning.setups, ...draft.setups },
  };
}

export function joinTexts(text: string, returning: string): string {
  if (text.trim() === '') return returning;
  return returning.trim() === '' ? text : `${returning}\n\n${text}`;
}
