/** Forms from JSON Schema, as far as elicitation uses it: an object of plain values. Pure. */

export interface Field {
  name: string;
  label: string;
  help: string;
  required: boolean;
  type: 'text' | 'long' | 'email' | 'url' | 'date' | 'datetime-local' | 'number' | 'integer' | 'boolean' | 'choice' | 'choices' | 'json';
  choices: { value: unknown; label: string }[];
  min?: number;
  max?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: string;
  start: unknown;
}

type Schema = Record<string, any>;

const FORMATS: Record<string, Field['type']> = { email: 'email', uri: 'url', url: 'url', date: 'date', 'date-time': 'datetime-local' };
const LONG_TEXT = 200;

export function fieldsOf(schema: unknown): Field[] {
  const { properties, required = [] } = (schema ?? {}) as Schema;
  if (typeof properties !== 'object' || properties === null) return [];
  return Object.entries(properties as Record<string, Schema>).map(([name, property]) => {
    const choices = choicesOf(property.type === 'array' ? property.items ?? {} : property);
    return {
      name,
      label: property.title ?? labelOf(name),
      help: property.description ?? '',
      required: (required as string[]).includes(name),
      type: typeOf(property, choices.length > 0),
      choices,
      start: property.default,
      ...limitsOf(property),
    };
  });
}

function labelOf(name: string): string {
  const words = name.replace(/[_-]+/g, ' ');
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function choicesOf(schema: Schema): Field['choices'] {
  const variants = schema.oneOf ?? schema.anyOf;
  if (Array.isArray(variants) && variants.every((v: Schema) => 'const' in v)) {
    return variants.map((v: Schema) => ({ value: v.const, label: v.title ?? String(v.const) }));
  }
  if (!Array.isArray(schema.enum)) return [];
  return schema.enum.map((value: unknown, i: number) => ({ value, label: String(schema.enumNames?.[i] ?? value) }));
}

function typeOf(schema: Schema, hasChoices: boolean): Field['type'] {
  if (schema.type === 'array') return hasChoices ? 'choices' : 'json';
  if (hasChoices) return 'choice';
  if (schema.type === 'boolean') return 'boolean';
  if (schema.type === 'integer') return 'integer';
  if (schema.type === 'number') return 'number';
  if (schema.type === 'string') return FORMATS[schema.format] ?? ((schema.maxLength ?? 0) > LONG_TEXT ? 'long' : 'text');
  return 'json';
}

function limitsOf(schema: Schema): Partial<Field> {
  return {
    ...(typeof schema.minimum === 'number' ? { min: schema.minimum } : {}),
    ...(typeof schema.maximum === 'number' ? { max: schema.maximum } : {}),
    ...(typeof schema.minLength === 'number' ? { minLength: schema.minLength } : {}),
    ...(typeof schema.maxLength === 'number' ? { maxLength: schema.maxLength } : {}),
    ...(typeof schema.pattern === 'string' ? { pattern: schema.pattern } : {}),
  };
}

/** What the inputs hold at first: texts, booleans, and for choices their place in the list. */
export function startValues(fields: Field[]): Record<string, unknown> {
  return Object.fromEntries(fields.map((field) => [field.name, startOf(field)]));
}

function startOf(field: Field): unknown {
  const { start } = field;
  switch (field.type) {
    case 'boolean': return start === true;
    case 'choice': {
      const place = field.choices.findIndex((c) => c.value === start);
      return place < 0 ? '' : String(place);
    }
    case 'choices': return Array.isArray(start) ? field.choices.flatMap((c, i) => (start.includes(c.value) ? [String(i)] : [])) : [];
    case 'json': return start === undefined ? '' : JSON.stringify(start, null, 2);
    default: return start === undefined || start === null ? '' : String(start);
  }
}

/** The inputs' values as data of the schema, with a fault for each field that cannot be read. */
export function readFields(fields: Field[], values: Record<string, unknown>): { data: Record<string, unknown>; faults: Record<string, string> } {
  const data: Record<string, unknown> = {};
  const faults: Record<string, string> = {};
  for (const field of fields) {
    const value = values[field.name];
    if (value === '' || value === undefined || value === null) {
      if (field.required) faults[field.name] = 'Needed.';
      continue;
    }
    const read = readField(field, value);
    if ('fault' in read) faults[field.name] = read.fault;
    else data[field.name] = read.value;
  }
  return { data, faults };
}

function readField(field: Field, value: unknown): { value: unknown } | { fault: string } {
  switch (field.type) {
    case 'boolean': return { value: value === true };
    case 'choice': return { value: field.choices[Number(value)]?.value };
    case 'choices': {
      const places = value as string[];
      if (field.required && places.length === 0) return { fault: 'Choose at least one.' };
      return { value: places.map((place) => field.choices[Number(place)]?.value) };
    }
    case 'number':
    case 'integer': return readNumber(field, Number(value));
    case 'datetime-local': return { value: new Date(String(value)).toISOString() };
    case 'json': {
      try {
        return { value: JSON.parse(String(value)) };
      } catch {
        return { fault: 'This is not JSON.' };
      }
    }
    default: return readText(field, String(value));
  }
}

function readNumber(field: Field, value: number): { value: number } | { fault: string } {
  if (!Number.isFinite(value)) return { fault: 'A number is needed.' };
  if (field.type === 'integer' && !Number.isInteger(value)) return { fault: 'A whole number is needed.' };
  if (field.min !== undefined && value < field.min) return { fault: `At least ${field.min}.` };
  if (field.max !== undefined && value > field.max) return { fault: `At most ${field.max}.` };
  return { value };
}

function readText(field: Field, value: string): { value: string } | { fault: string } {
  if (field.minLength !== undefined && value.length < field.minLength) return { fault: `At least ${field.minLength} characters.` };
  if (field.maxLength !== undefined && value.length > field.maxLength) return { fault: `At most ${field.maxLength} characters.` };
  if (field.type === 'email' && !/^[^@\s]+@[^@\s]+$/.test(value)) return { fault: 'An e-mail address is needed.' };
  if (field.type === 'url' && !URL.canParse(value)) return { fault: 'An address (URL) is needed.' };
  return { value };
}
