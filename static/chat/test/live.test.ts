import { describe, expect, it } from 'vitest';
import { conflicts, describePatch, describeValue, edit, editAgent, editPaths, editTool, hasAll, isToolOn, memberOf, moved, pathLabel, readStops, toPatch, withoutPaths, writeStops } from '../src/lib/live';

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

  it('of a tool stand above those of its connector', () => {
    const off = { tools: { files: false } };
    expect([isToolOn({}, off, 'files/read'), isToolOn({}, off, 'files'), isToolOn({}, off, 'time')]).toEqual([false, false, true]);
    expect(editTool({}, off, off, 'files/read', true)).toEqual({ tools: { 'files/read': true } });
    expect(editTool({}, {}, off, 'files/read', false)).toEqual({});
    const both = { tools: { files: false, 'files/read': false } };
    expect(editTool({}, both, both, 'files/read', true)).toEqual({ tools: { 'files/read': true } });
    expect(isToolOn({ tools: { files: false } }, {}, 'files/read')).toBe(false);
  });

  it('that a preset would make are told from those that are made', () => {
    const config = { system: 'Plan.', tools: { files: false, mail: true } };
    expect(hasAll(config, { system: 'Plan.', tools: { files: false } })).toBe(true);
    expect(hasAll(config, { system: 'Plan.', tools: { files: true } })).toBe(false);
    expect(hasAll({}, { stop: [] })).toBe(false);
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
    expect(describePatch({ fallbacks: ['a/b', 'c/d'], trim: false, reasoning: 'high', stop: [] })).toBe(
      'Fallbacks a/b, then c/d, Leave out the oldest off, Reasoning high, Stop at none',
    );
    expect(describeValue(['a/b', 'c/d'])).toBe('“a/b”, “c/d”');
  });
});

describe('what the schema offers', () => {
  const config = {
    type: 'object',
    properties: {
      reasoning: { anyOf: [{ enum: ['high', 'low', 'odd', 'none'] }, { type: 'null' }] },
      retries: { type: 'integer', minimum: 0, maximum: 5 },
      stop: { anyOf: [{ type: 'array', items: { type: 'string', maxLength: 200 }, maxItems: 4 }, { type: 'null' }] },
    },
  };
  const schema = { $ref: '#/$defs/ChatConfig', $defs: { ChatConfig: config } };

  it('is read through references and what may be null, the efforts from little to much', () => {
    expect(memberOf('run', schema, 'reasoning')).toEqual({ choices: ['none', 'low', 'high', 'odd'] });
    expect(memberOf('conv', schema, 'retries')).toEqual({ choices: [], min: 0, max: 5 });
    expect(memberOf('conv', schema, 'stop')).toEqual({ choices: [], maxItems: 4, maxLength: 200 });
  });

  it('of a device is that of its section', () => {
    const device = { $ref: '#/$defs/C', $defs: { C: { properties: { llm: { anyOf: [{ $ref: '#/$defs/R' }, { type: 'null' }] } } }, R: config } };
    expect(memberOf('client', device, 'retries')).toEqual({ choices: [], min: 0, max: 5 });
  });

  it('is nothing where the hub does not know the member', () => {
    expect(memberOf('run', schema, 'seed')).toBeNull();
    expect(memberOf('client', schema, 'retries')).toBeNull();
    expect(memberOf('run', undefined, 'retries')).toBeNull();
  });
});

describe('lists', () => {
  it('keep their entries while one moves', () => {
    expect(moved(['a', 'b', 'c'], 2, -1)).toEqual(['a', 'c', 'b']);
    expect(moved(['a', 'b', 'c'], 0, 1)).toEqual(['b', 'a', 'c']);
    expect(moved(['a', 'b'], 0, -1)).toEqual(['a', 'b']);
  });

  it('of texts to stop at are one in each line, with line breaks spelt', () => {
    expect(readStops('END\n\n\\n\\n\n stop ')).toEqual(['END', '\n\n', ' stop ']);
    expect(readStops(writeStops(['a\nb', 'c']))).toEqual(['a\nb', 'c']);
  });
});

describe('agents', () => {
  const effective = { bots: { b0: { temperature: 1 }, b1: { name: 'Ben', temperature: 0.7 } } };

  it('are edited one by one, by paths of their own', () => {
    let edits = editAgent({}, effective, 'bots', 'b1', 'temperature', 0.2);
    edits = editAgent(edits, effective, 'bots', 'b0', 'system', 'Be brief');
    expect(edits).toEqual({ bots: { b1: { temperature: 0.2 }, b0: { system: 'Be brief' } } });
    expect(editPaths({ ...edits, model: 'a/m' })).toEqual(['bots.b1.temperature', 'bots.b0.system', 'model']);
    expect(editAgent(edits, effective, 'bots', 'b1', 'temperature', 0.7)).toEqual({ bots: { b0: { system: 'Be brief' } } });
    expect(withoutPaths(edits, ['bots.b1.temperature', 'bots.b0.system'])).toEqual({});
  });

  it('stand against each other only where the same knob of the same one was turned', () => {
    const edits = { bots: { b1: { temperature: 0.2, name: 'Bob' } } };
    const theirs = { bots: { b0: { temperature: 0 }, b1: { name: 'Ben', temperature: 0.9 } } };
    expect(conflicts(edits, effective, theirs)).toEqual(['bots.b1.temperature']);
    expect(pathLabel('bots.b1.temperature', { b1: 'Ben' })).toBe('Temperature of Ben');
    expect(pathLabel('model')).toBe('Model');
  });

  it('are told by their names', () => {
    expect(describePatch({ bots: { b1: { temperature: 0.2, system: 'x' }, b2: null } }, { b1: 'Ben' })).toBe('Ben: Temperature 0.2, System prompt changed; b2: removed');
  });
});
