import { beforeEach, describe, expect, it } from 'vitest';
import { addToOutbox, dropFromOutbox, joinDraft, readDraft, readOutbox, takeLeftovers, writeDraft } from '../src/lib/drafts';

beforeEach(() => localStorage.clear());

describe('drafts', () => {
  it('are kept for each conversation, and for the chat that is not begun', () => {
    writeDraft('c1', 'one');
    writeDraft(null, 'new');
    expect([readDraft('c1'), readDraft('c2'), readDraft(null)]).toEqual(['one', '', 'new']);
  });

  it('are gone when they are empty', () => {
    writeDraft('c1', 'one');
    writeDraft('c1', '');
    expect(localStorage.getItem('sag.chat.drafts')).toBe('{}');
  });

  it('keep the newest hundred', () => {
    for (let i = 0; i < 120; i += 1) writeDraft(`c${i}`, 'x');
    expect([readDraft('c0'), readDraft('c119')]).toEqual(['', 'x']);
  });

  it('survive a storage that holds rubbish', () => {
    localStorage.setItem('sag.chat.drafts', '{');
    expect(readDraft('c1')).toBe('');
  });

  it('take back a text before what was typed since', () => {
    expect(joinDraft('', 'sent')).toBe('sent');
    expect(joinDraft('typed', 'sent')).toBe('sent\n\ntyped');
  });
});

describe('the outbox', () => {
  const entry = { key: 'k1', conv: 'c1', text: 'hello', when: 'queue' as const, ts: 1000 };

  it('holds a message until it is accepted', () => {
    addToOutbox(entry);
    addToOutbox(entry);
    expect(readOutbox()).toEqual([entry]);
    dropFromOutbox('k1');
    expect(readOutbox()).toEqual([]);
  });

  it('gives a young message to be sent again under its key', () => {
    addToOutbox(entry);
    expect(takeLeftovers(1000 + 60_000)).toEqual([entry]);
  });

  it('makes an old message a draft again', () => {
    addToOutbox(entry);
    writeDraft('c1', 'typed');
    expect(takeLeftovers(1000 + 3_600_000)).toEqual([]);
    expect(readDraft('c1')).toBe('hello\n\ntyped');
    expect(readOutbox()).toEqual([]);
  });
});
