import { describe, expect, it } from 'vitest';
import { fieldsOf, placeFault, readFields, startValues, type Field } from '../src/lib/forms';

const SCHEMA = {
  type: 'object',
  required: ['name', 'size'],
  properties: {
    name: { type: 'string', title: 'Your name', minLength: 2 },
    email: { type: 'string', format: 'email' },
    count: { type: 'integer', minimum: 1, maximum: 9, default: 3 },
    size: { type: 'string', enum: ['s', 'm'], enumNames: ['Small', 'Medium'] },
    gift: { type: 'boolean', default: true },
    days: { type: 'array', items: { type: 'string', enum: ['mon', 'tue'] } },
    more: { type: 'object' },
  },
};

const one = (property: object, data?: object): Field => fieldsOf({ properties: { x: property } }, data)[0]!;
const read = (property: object, value: unknown) => readFields([one(property)], { '/x': value });

describe('a form', () => {
  const fields = fieldsOf(SCHEMA);

  it('has a field for each property', () => {
    expect(fields.map((f) => `${f.label}: ${f.type}`)).toEqual([
      'Your name: text', 'Email: email', 'Count: integer', 'Size: choice', 'Gift: boolean', 'Days: choices', 'More: json',
    ]);
  });

  it('begins with the defaults', () => {
    expect(startValues(fields)).toEqual({ '/name': '', '/email': '', '/count': '3', '/size': '', '/gift': true, '/days': [], '/more': '' });
  });

  it('reads its inputs as the schema means them, and leaves out what is empty', () => {
    const values = { '/name': 'Ana', '/email': '', '/count': '4', '/size': '1', '/gift': false, '/days': ['1'], '/more': '{"a":1}' };
    expect(readFields(fields, values)).toEqual({ data: { name: 'Ana', count: 4, size: 'm', gift: false, days: ['tue'], more: { a: 1 } }, faults: {} });
  });

  it('says what is wrong, field by field', () => {
    const values = { '/name': 'A', '/email': 'x', '/count': '1.5', '/size': '', '/gift': false, '/days': [], '/more': '{' };
    expect(Object.keys(readFields(fields, values).faults)).toEqual(['/name', '/email', '/count', '/size', '/more']);
  });

  it.each([[{}], [true], [null], [{ type: 'string' }], [{ type: 'object' }], [{ oneOf: [{ type: 'object' }, { type: 'array' }] }]])('is not made of %j', (schema) => {
    expect(fieldsOf(schema)).toEqual([]);
  });
});

describe('a field', () => {
  it.each<[object, string]>([
    [{ type: 'string', format: 'uri' }, 'url'],
    [{ type: 'string', format: 'date' }, 'date'],
    [{ type: 'string', format: 'date-time' }, 'datetime-local'],
    [{ type: 'string', writeOnly: true }, 'password'],
    [{ type: 'string', maxLength: 4000 }, 'long'],
    [{ type: ['number', 'null'] }, 'number'],
    [{ anyOf: [{ type: 'integer' }, { type: 'null' }], default: null }, 'integer'],
    [{ oneOf: [{ const: 1, title: 'One' }, { const: 2, title: 'Two' }] }, 'choice'],
    [{ type: 'array', items: { anyOf: [{ const: 'a', title: 'A' }] } }, 'choices'],
    [{ type: 'array', items: { type: 'string' } }, 'lines'],
    [{ type: 'array', items: { type: 'object' } }, 'json'],
    [{ type: 'object', properties: { a: { type: 'string' } } }, 'group'],
    [{ const: 'fixed' }, 'choice'],
    [{ anyOf: [{ type: 'string' }, { type: 'number' }] }, 'json'],
    [{}, 'json'],
  ])('of %j is one for %s', (property, type) => expect(one(property).type).toBe(type));

  it('hides what is called a secret', () => {
    const types = fieldsOf({ properties: Object.fromEntries(['apiKey', 'db_password', 'token', 'page_token', 'secretary'].map((n) => [n, { type: 'string' }])) });
    expect(types.map((f) => f.type)).toEqual(['password', 'password', 'password', 'text', 'text']);
  });

  it('is found behind a reference, and one that refers to itself ends', () => {
    const schema = { $defs: { Day: { enum: ['mon', 'tue'] }, Loop: { $ref: '#/$defs/Loop' } }, properties: { day: { $ref: '#/$defs/Day', title: 'Which day' }, loop: { $ref: '#/$defs/Loop' } } };
    expect(fieldsOf(schema).map((f) => [f.label, f.type, f.choices.length])).toEqual([['Which day', 'choice', 2], ['Loop', 'json', 0]]);
  });

  it('forgets a default that is none of its choices', () => expect(startValues([one({ enum: ['a'], default: 'b' })])).toEqual({ '/x': '' }));

  it.each<[object, unknown, string]>([
    [{ type: 'number', minimum: 0, exclusiveMaximum: 1 }, '1', 'Less than 1.'],
    [{ type: 'number', minimum: 2 }, '1', 'At least 2.'],
    [{ type: 'number' }, 'many', 'A number is needed.'],
    [{ type: 'number', multipleOf: 0.1 }, '0.25', 'A multiple of 0.1.'],
    [{ type: 'integer' }, '1,5', 'A whole number is needed.'],
    [{ type: 'string', minLength: 2 }, '👍', 'At least 2 characters.'],
    [{ type: 'string', format: 'uri' }, 'nowhere', 'An address (URL) is needed.'],
    [{ type: 'string', pattern: '^[A-Z]+$' }, 'abc', 'It has to match ^[A-Z]+$'],
    [{ type: 'array', items: { enum: ['a', 'b', 'c'] }, minItems: 2 }, ['0'], 'Choose at least 2.'],
    [{ type: 'array', items: { type: 'number' } }, '1\ntwo', 'A number in each line is needed.'],
  ])('of %j refuses %j', (property, value, fault) => expect(read(property, value).faults).toEqual({ '/x': fault }));

  it.each<[object, unknown, unknown]>([
    [{ type: 'number' }, '1,5', 1.5],
    [{ type: 'number', multipleOf: 0.1 }, '0.3', 0.3],
    [{ type: 'array', items: { type: 'string' } }, ' a \n\nb', ['a', 'b']],
    [{ type: 'array', items: { type: 'integer' } }, '1\n2', [1, 2]],
    [{ oneOf: [{ const: 1, title: 'One' }, { const: 2, title: 'Two' }] }, '1', 2],
    [{ enum: [false, true] }, '0', false],
  ])('of %j reads %j', (property, value, data) => expect(read(property, value)).toEqual({ data: { x: data }, faults: {} }));

  it('does not try a pattern that could take for ever', () => {
    expect(read({ type: 'string', pattern: '^(a+)+$' }, `${'a'.repeat(40)}!`).faults).toEqual({});
  });

  it('shows a moment in the time of this machine, and gives the same moment back', () => {
    const field = one({ type: 'string', format: 'date-time', default: '2026-03-01T09:30:00Z' });
    const shown = startValues([field])['/x'];
    expect(shown).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d$/);
    expect(readFields([field], { '/x': shown }).data).toEqual({ x: '2026-03-01T09:30:00.000Z' });
  });
});

describe('a group', () => {
  const fields = fieldsOf({ required: ['who'], properties: { who: { properties: { name: { type: 'string' } }, required: ['name'], type: 'object' }, to: { type: 'object', required: ['city'], properties: { city: { type: 'string' }, zip: { type: 'string' } } } } });

  it('is left out while nothing in it is filled in, unless it is needed', () => {
    expect(readFields(fields, { '/who/name': 'Ana', '/to/city': '', '/to/zip': '' })).toEqual({ data: { who: { name: 'Ana' } }, faults: {} });
    expect(readFields(fields, { '/who/name': '', '/to/city': '', '/to/zip': '' }).faults).toEqual({ '/who/name': 'Needed.' });
  });

  it('needs what it needs once something is there', () => {
    expect(readFields(fields, { '/who/name': 'Ana', '/to/city': '', '/to/zip': '0150' }).faults).toEqual({ '/to/city': 'Needed.' });
  });

  it('goes one level deep', () => {
    const deep = fieldsOf({ properties: { a: { type: 'object', properties: { b: { type: 'object', properties: { c: { type: 'string' } } } } } } });
    expect([deep[0]!.type, deep[0]!.fields[0]!.type]).toEqual(['group', 'json']);
  });
});

describe('arguments that are edited', () => {
  const schema = {
    type: 'object', required: ['to', 'body'],
    properties: { to: { type: 'array', items: { type: 'string' } }, body: { type: 'string' }, at: { type: 'string', format: 'date-time' }, copies: { type: 'integer', default: 1 }, urgent: { type: 'boolean' } },
  };
  const args = { to: ['team@example.org'], body: '', at: '2026-03-01T10:30:00+01:00', extra: { kept: true } };
  const fields = fieldsOf(schema, args);
  const values = startValues(fields);

  it('stay as they are where nobody touched them', () => expect(readFields(fields, values, args)).toEqual({ data: args, faults: {} }));

  it('change where somebody did', () => {
    const { data } = readFields(fields, { ...values, '/to': 'ops@example.org', '/urgent': true }, args);
    expect(data).toEqual({ ...args, to: ['ops@example.org'], urgent: true });
  });

  it('may become empty texts, and lose what may be left out', () => {
    const given = { to: ['a@example.org'], body: 'Hello', copies: 2 };
    const form = fieldsOf(schema, given);
    expect(readFields(form, { ...startValues(form), '/body': '', '/copies': '' }, given).data).toEqual({ to: ['a@example.org'], body: '' });
  });

  it('say what holds where they are left out', () => expect(fields.find((f) => f.name === 'copies')!.fallback).toBe('1'));

  it('are JSON where they are not of the kind that the schema says', () => {
    expect(fieldsOf(schema, { to: 'team@example.org', copies: 'two' }).map((f) => f.type)).toEqual(['json', 'text', 'datetime-local', 'json', 'boolean']);
  });

  it('get more room where they are long', () => expect(one({ type: 'string' }, { x: 'a\nb' }).type).toBe('long'));
});

describe("the hub's fault", () => {
  const fields = fieldsOf({ properties: { name: { type: 'string' }, 'a b': { type: 'string' }, to: { type: 'array', items: { type: 'string' } }, who: { type: 'object', properties: { city: { type: 'string' } } } } });
  it.each<[string, string, object]>([
    ['$.name', 'too short', { '/name': 'too short' }],
    ["$['a b']", 'wrong', { '/a b': 'wrong' }],
    ['$.to[0]', 'wrong', { '/to': 'wrong' }],
    ['$.who.city', 'wrong - at `$.who.city`', { '/who/city': 'wrong' }],
    ['$.who', "'city' is a required property", { '/who/city': 'Needed.' }],
    ['$', 'Object missing required field `name`', { '/name': 'Needed.' }],
    ['$.elsewhere', 'wrong', { '': 'wrong' }],
    ['$', 'wrong', { '': 'wrong' }],
  ])('at %s (%s) stands at its field', (path, message, faults) => expect(placeFault(fields, path, message)).toEqual(faults));
});

