import { describe, expect, it } from 'vitest';
import { addAgent, castOf, differing, dropAgent, fieldsOfKind, inForce, kindTitle, knobsOf, ownKnobs, ownMembers, setAgent, setupWords, type Kind } from '../src/lib/kinds';

const COMMON = { model: { anyOf: [{ type: 'string' }, { type: 'null' }], default: null }, temperature: { anyOf: [{ type: 'number' }, { type: 'null' }], default: null } };
const BOT = {
  title: 'Bot', type: 'object', description: 'One who takes part.\n\n    Attributes:\n        name: What people call it.\n        model, temperature: As of a run,\n            for this one.\n    ',
  properties: {
    temperature: { anyOf: [{ type: 'number', minimum: 0, maximum: 2 }, { type: 'null' }], default: null }, tools: { type: 'boolean', default: false },
    system: { anyOf: [{ type: 'string', maxLength: 100_000 }, { type: 'null' }], default: null }, name: { type: 'string', maxLength: 80, default: '' },
    model: { anyOf: [{ type: 'string', maxLength: 200 }, { type: 'null' }], default: null }, extra: { type: 'object' },
  },
};
const chat = { name: 'chat', title: 'Chat', description: '', origin: 'chat', defaults: {}, schema: { $ref: '#/$defs/C', $defs: { C: { properties: COMMON } } } } as Kind;
const dialogue = {
  name: 'dialogue', title: '', description: '', origin: 'dialogue', defaults: { bots: { b0: { name: 'Ada' }, b1: { name: 'Ben' } }, max_turns: 10 },
  schema: {
    $ref: '#/$defs/D',
    $defs: {
      D: {
        description: 'Config.\n\n    Attributes:\n        max_turns: After how many turns it is over.\n    ',
        properties: {
          ...COMMON, bots: { type: 'object', additionalProperties: { $ref: '#/$defs/Bot' }, default: {} },
          max_turns: { type: 'integer', minimum: 1, default: 10 }, next: { enum: ['moderator', 'round_robin'], default: 'round_robin' }, stages: { type: 'object' },
        },
      },
      Bot: BOT,
    },
  },
} as unknown as Kind;

describe('a kind', () => {
  it('has members of its own beside those that every kind has', () => {
    expect(ownMembers(dialogue, chat)).toEqual(['bots', 'max_turns', 'next', 'stages']);
    expect(kindTitle(dialogue)).toBe('Dialogue');
  });

  it('makes a form of them without its agents, with what their docstring says', () => {
    const fields = fieldsOfKind(dialogue, ownMembers(dialogue, chat), dialogue.defaults);
    expect(fields.map(({ name, type, label, help }) => [name, type, label, help])).toEqual([
      ['max_turns', 'integer', 'Turns', 'After how many turns it is over.'], ['next', 'choice', 'Next', ''], ['stages', 'json', 'Stages', ''],
    ]);
    expect(fields[1]!.choices.map((choice) => choice.label)).toEqual(['moderator', 'round robin']);
    expect(ownKnobs(dialogue, chat).map((field) => field.name)).toEqual(['max_turns', 'next']);
  });

  it('has knobs for each of its agents', () => {
    expect(castOf(dialogue.schema)?.name).toBe('bots');
    expect(castOf(chat.schema)).toBeNull();
    expect(castOf(undefined)).toBeNull();
    const knobs = knobsOf(dialogue.schema);
    expect(knobs.map(({ name, type }) => `${name} ${type}`)).toEqual(['name text', 'model text', 'temperature number', 'tools boolean', 'system long']);
    expect(knobs.map(({ help }) => help).slice(0, 3)).toEqual(['What people call it.', 'As of a run, for this one.', 'As of a run, for this one.']);
    expect([knobs[2]!.min, knobs[2]!.max]).toEqual([0, 2]);
  });
});

describe('a setup', () => {
  it('is sparse over what holds anyway', () => {
    const setup = setAgent({}, 'bots', 'b1', 'temperature', 0.2);
    expect(setup).toEqual({ bots: { b1: { temperature: 0.2 } } });
    expect(inForce(dialogue, { max_turns: 4 }, setup)).toEqual({ bots: { b0: { name: 'Ada' }, b1: { name: 'Ben', temperature: 0.2 } }, max_turns: 4 });
    expect(setAgent(setup, 'bots', 'b1', 'temperature', null)).toEqual({});
    expect(differing({ max_turns: 4, next: 'moderator' }, { max_turns: 4 })).toEqual({ next: 'moderator' });
  });

  it('takes more agents, under ids that are not taken, and lets them go', () => {
    const more = addAgent({}, 'bots', { bots: { b0: {}, b3: {} } });
    expect(more).toEqual({ bots: { b4: { name: 'Agent 4' } } });
    expect(addAgent({}, 'agents', {})).toEqual({ agents: { b1: { title: 'Agent 1' } } });
    expect(dropAgent(more, 'bots', 'b4')).toEqual({});
  });

  it('is told in a few words', () => {
    expect(setupWords(dialogue.defaults)).toBe('Ada and Ben, 10 turns');
    expect(setupWords({ agents: { a: { title: 'Billing' }, b: {}, c: {}, d: {} } })).toBe('4 agents');
    expect(setupWords({})).toBe('');
  });
});
