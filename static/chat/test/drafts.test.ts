import { beforeEach, describe, expect, it } from 'vitest';
import { addToOutbox, dropFromOutbox, joinDraft, newDraft, readDraft, readOutbox, takeLeftovers, writeDraft } from '../src/lib/drafts';

beforeEach(() => localStorage.clear());

const text = (words: string) => newDraft({ text: words });
const file = { ref: 'f_1', mime: 'image/png', name: 'cat.png', size: 9 };

describe('drafts', () => {
  it('are kept for each conversation, and for the chat that is not begun', () => {
    writeDraft('c1', text('one'));
    writeDraft(null, text('new'));
    expect([readDraft('c1'), readDraft('c2'), readDraft(null)].map((d) => d.text)).toEqual(['one', '', 'new']);
  });

  it('keep uploaded files, the model and what a new chat begins with', () => {
    const draft = newDraft({ files: [file], model: 'demo/scripted', config: { temperature: 0.2 } });
    writeDraft(null, draft);
    expect(readDraft(null)).toEqual(draft);
  });

  it('are gone when they are empty', () => {
    writeDraft('c1', text('one'));
    writeDraft('c1', newDraft());
    expect(localStorage.getItem('sag.chat.drafts')).toBe('{}');
  });

  it('keep the newest hundred', () => {
    for (let i = 0; i < 120; i += 1) writeDraft(`c${i}`, text('x'));
    expect([readDraft('c0').text, readDraft('c119').text]).toEqual(['', 'x']);
  });

  it('survive a storage that holds rubbish', () => {
    localStorage.setItem('sag.chat.drafts', '{');
    expect(readDraft('c1')).toEqual(newDraft());
  });

  it('take back a text before what was typed since', () => {
    expect(joinDraft(newDraft(), text('sent')).text).toBe('sent');
    expect(joinDraft(text('typed'), text('sent')).text).toBe('sent\n\ntyped');
    expect(joinDraft(text('typed'), newDraft({ files: [file] }))).toEqual(newDraft({ text: 'typed', files: [file] }));
  });
});

describe('the outbox', () => {
  const entry = { ...text('hello'), key: 'k1', conv: 'c1', when: 'queue' as const, ts: 1000 };

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
    writeDraft('c1', text('typed'));
    expect(takeLeftovers(1000 + 3_600_000)).toEqual([]);
    expect(readDraft('c1').text).toBe('hello\n\ntyped');
    expect(readOutbox()).toEqual([]);
  });

  it('makes a message a draft again whose files did not all arrive', () => {
    addToOutbox({ ...entry, files: [file], incomplete: true });
    expect(takeLeftovers(1000)).toEqual([]);
    expect(readDraft('c1')).toEqual(newDraft({ text: 'hello', files: [file] }));
  });
});
