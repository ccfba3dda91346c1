import { describe, expect, it } from 'vitest';
import { conflicts, describePatch, edit, editTool, isToolOn, toPatch } from '../src/lib/live';

describe('edits', () => {
  it('hold only what differs from what is in force', () => {
    const effective = { temperature: 0.7 };
    const changed = edit({}, effective, 'temperature', 0.2);
    expect(changed).toEqual({ temperature: 0.2 });
    expect(edit(changed, effective, 'temperature', 0.7)).toEqual({});
    expect(edit({}, {}, 'system', null)).toEqual({});
  });

  it('of a device go into its section', () => {
    expect(toPatch('client', { temperature: 1 })).toEqual({ llm: { temperature: 1 } });
    expect(toPatch('run', { temperature: 1 })).toEqual({ temperature: 1 });
  });

  it('of tools name those that change, and take back what was told at the same scope', () => {
    const off = editTool({}, {}, { tools: {} }, 'mail', false);
    expect(off).toEqual({ tools: { mail: false } });
    expect(isToolOn(off, { tools: {} }, 'mail')).toBe(false);
    expect(editTool(off, {}, { tools: {} }, 'mail', true)).toEqual({});
    const here = { tools: { mail: false } };
    expect(editTool({}, here, here, 'mail', true)).toEqual({ tools: { mail: null } });
    expect(editTool({}, {}, here, 'mail', true)).toEqual({ tools: { mail: true } });
  });
});

describe('conflicts', () => {
  it('are the edits whose value somebody else changed to something else', () => {
    const seen = { temperature: 0.7, rounds: 5, system: 'a' };
    const theirs = { temperature: 0.9, rounds: 5, system: 'mine' };
    expect(conflicts({ temperature: 0.2, rounds: 8, system: 'mine' }, seen, theirs)).toEqual(['temperature']);
  });
});

describe('a patch in words', () => {
  it('names what it changes', () => {
    expect(describePatch({ temperature: 0.2, system: 'Be brief', model: null, tools: { mail: false, time: null } })).toBe(
      'Temperature 0.2, System prompt changed, Model reset, mail off, time on',
    );
  });
});
