import { describe, expect, it } from 'vitest';
import { optionLabel, orderOptions } from '../src/lib/asks';
import { fieldsOf, readFields, startValues } from '../src/lib/forms';

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

describe('a form', () => {
  const fields = fieldsOf(SCHEMA);

  it('has a field for each property', () => {
    expect(fields.map((f) => `${f.label}: ${f.type}`)).toEqual([
      'Your name: text', 'Email: email', 'Count: integer', 'Size: choice', 'Gift: boolean', 'Days: choices', 'More: json',
    ]);
  });

  it('begins with the defaults', () => {
    expect(startValues(fields)).toEqual({ name: '', email: '', count: '3', size: '', gift: true, days: [], more: '' });
  });

  it('reads its inputs as the schema means them, and leaves out what is empty', () => {
    const { data, faults } = readFields(fields, { name: 'Ada', email: '', count: '4', size: '1', gift: false, days: ['1'], more: '{"a":1}' });
    expect(faults).toEqual({});
    expect(data).toEqual({ name: 'Ada', count: 4, size: 'm', gift: false, days: ['tue'], more: { a: 1 } });
  });

  it('says what is wrong, field by field', () => {
    const { faults } = readFields(fields, { name: 'A', email: 'x', count: '1.5', size: '', gift: false, days: [], more: '{' });
    expect(Object.keys(faults)).toEqual(['name', 'email', 'count', 'size', 'more']);
  });
});

describe('options', () => {
  it('stand with the refusals last', () => {
    expect(orderOptions('approval', ['deny', 'allow_once', 'allow_always'])).toEqual(['allow_once', 'allow_always', 'deny']);
  });

  it('have words', () => {
    expect(['allow_once', 'allow_run', 'allow_always', 'deny', 'something_else'].map((o) => optionLabel('approval', o))).toEqual([
      'Allow once', 'Allow for this run', 'Always allow', 'Deny', 'Something else',
    ]);
  });
});
