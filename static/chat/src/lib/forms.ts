/**
 * Forms from JSON Schema: what an elicitation asks for, what a tool takes. Pure.
 *
 * A schema becomes a list of fields; one that makes none is left to a JSON editor. The inputs hold texts, booleans and
 * the places of choices, by the field's path (a JSON pointer); they become data again with a fault for each field that
 * cannot be read. The hub has the last word: what it refuses is shown at the field that it names.
 */

export type FieldType =
  | 'text' | 'long' | 'password' | 'email' | 'url' | 'date' | 'datetime-local' | 'number' | 'integer'
  | 'boolean' | 'choice' | 'choices' | 'lines' | 'group' | 'json';

export interface Field {
  /** Where it is in the data, as a JSON pointer: what tells it apart. */
  path: string;
  name: string;
  label: string;
  help: string;
  required: boolean;
  type: FieldType;
  choices: { value: unknown; label: string }[];
  /** Of a group. */
  fields: Field[];
  min?: number;
  max?: number;
  isAbove?: boolean;
  isBelow?: boolean;
  step?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: string;
  minItems?: number;
  maxItems?: number;
  /** Of lines: that each is a number. */
  isNumeric?: boolean;
  /** What it begins with. */
  start: unknown;
  /** What holds where it is left empty, as words. */
  fallback?: string;
}

export type Values = Record<string, unknown>;
/** By path; '' is about the whole. */
export type Faults = Record<string, string>;
type Json = Record<string, any>;

const FORMATS: Record<string, FieldType> = {
  email: 'email', 'idn-email': 'email', uri: 'url', url: 'url', date: 'date', 'date-time': 'datetime-local', password: 'password',
};
const LONG_TEXT = 200;
const SECRET = /\b(?:password|passphrase|passcode|secret|api key|(?:access|api|auth|bearer) token)$|^token$/i;
const DEPTH = 8;

/** So deep a form shows objects as groups of fields. */
const GROUPS = 1;

/** The fields of a schema; none where it is no object whose members are known. `data` is what is to be edited. */
export function fieldsOf(schema: unknown, data?: Json): Field[] {
  const root = isObject(schema) ? schema : {};
  return membersOf(resolve(root, root), root, data, '', 0);
}

function membersOf(schema: Json, root: Json, data: Json | undefined, path: string, depth: number): Field[] {
  if (!isObject(schema.properties)) return [];
  const required = Array.isArray(schema.required) ? schema.required : [];
  return Object.entries(schema.properties).map(([name, given]) => fieldOf(name, resolve(given, root), root, required.includes(name), data, path, depth));
}

function fieldOf(name: string, schema: Json, root: Json, required: boolean, data: Json | undefined, path: string, depth: number): Field {
  const own = `${path}/${escape(name)}`;
  const items = resolve(schema.items, root);
  const choices = choicesOf(schema.type === 'array' ? items : schema);
  const given = data === undefined ? undefined : data[name];
  const start = data === undefined ? (schema.default ?? schema.const) : given;
  const field: Field = {
    path: own, name, required, choices, start, fields: [],
    label: typeof schema.title === 'string' && schema.title ? schema.title : labelOf(name),
    help: typeof schema.description === 'string' ? schema.description : '',
    type: typeOf(name, schema, items, choices.length > 0),
    ...limitsOf(schema),
    ...(items.type === 'number' || items.type === 'integer' ? { isNumeric: true } : {}),
    ...(data !== undefined && schema.default !== undefined && schema.default !== null ? { fallback: words(schema.default) } : {}),
  };
  if (field.type === 'group') {
    field.fields = depth < GROUPS ? membersOf(schema, root, isObject(given) ? given : data && {}, own, depth + 1) : [];
    if (field.fields.length === 0) field.type = 'json';
  }
  if (typeof start === 'string' && field.type === 'text' && (start.length > LONG_TEXT || start.includes('\n'))) field.type = 'long';
  if (start === undefined || start === null || fits(field, start)) return field;
  // A default that does not fit is the schema's mistake; a value that does not fit is for the person to mend.
  return data === undefined ? { ...field, start: undefined } : { ...field, type: 'json', fields: [] };
}

/** A schema without what stands for another one: references, a lone `allOf`, and `null` as a way to leave it out. */
function resolve(given: unknown, root: Json, depth = 0): Json {
  if (!isObject(given) || depth > DEPTH) return {};
  const { $ref, allOf, ...schema } = given;
  if (typeof $ref === 'string') return { ...resolve(lookUp(root, $ref), root, depth + 1), ...schema };
  if (Array.isArray(allOf) && allOf.length === 1) return { ...resolve(allOf[0], root, depth + 1), ...schema };
  for (const word of ['anyOf', 'oneOf']) {
    if (!Array.isArray(schema[word])) continue;
    const { [word]: variants, ...rest } = schema;
    const real = variants.filter((one: unknown) => !isObject(one) || one.type !== 'null');
    if (real.length === 1) return { ...resolve(real[0], root, depth + 1), ...rest };
    if (real.length < variants.length) return { ...schema, [word]: real };
  }
  if (Array.isArray(schema.type)) {
    const real = schema.type.filter((one: unknown) => one !== 'null');
    if (real.length === 1) return { ...schema, type: real[0] };
  }
  return allOf === undefined ? schema : { ...schema, allOf };
}

function lookUp(root: Json, ref: string): unknown {
  if (!ref.startsWith('#/')) return undefined;
  return ref.slice(2).split('/').reduce<unknown>((at, token) => (isObject(at) ? at[unescape(token)] : undefined), root);
}

function choicesOf(schema: Json): Field['choices'] {
  const variants = schema.oneOf ?? schema.anyOf;
  if (Array.isArray(variants) && variants.length > 0 && variants.every((one) => isObject(one) && 'const' in one)) {
    return variants.map((one: Json) => ({ value: one.const, label: String(one.title ?? words(one.const)) }));
  }
  if ('const' in schema) return [{ value: schema.const, label: words(schema.const) }];
  if (!Array.isArray(schema.enum)) return [];
  const names: unknown[] = Array.isArray(schema.enumNames) ? schema.enumNames : [];
  return schema.enum.flatMap((value: unknown, i: number) => (value === null ? [] : [{ value, label: String(names[i] ?? words(value)) }]));
}

function typeOf(name: string, schema: Json, items: Json, hasChoices: boolean): FieldType {
  switch (schema.type) {
    case 'array':
      if (hasChoices) return 'choices';
      return ['string', 'number', 'integer'].includes(items.type) ? 'lines' : 'json';
    case 'object': return isObject(schema.properties) ? 'group' : 'json';
    case 'boolean': return hasChoices ? 'choice' : 'boolean';
  }
  if (hasChoices) return 'choice';
  if (schema.type === 'integer' || schema.type === 'number') return schema.type;
  if (schema.type !== 'string') return 'json';
  if (schema.writeOnly === true || SECRET.test(labelOf(name))) return 'password';
  return FORMATS[schema.format] ?? ((schema.maxLength ?? 0) > LONG_TEXT || 'contentMediaType' in schema ? 'long' : 'text');
}

function limitsOf(schema: Json): Partial<Field> {
  const limits: Json = {};
  const take = (member: string, from: unknown) => {
    if (typeof from === 'number') limits[member] = from;
  };
  take('min', schema.minimum);
  take('max', schema.maximum);
  // A bound of its own since draft 6, before that a word about the other one.
  if (typeof schema.exclusiveMinimum === 'number' || schema.exclusiveMinimum === true) limits.isAbove = true;
  if (typeof schema.exclusiveMaximum === 'number' || schema.exclusiveMaximum === true) limits.isBelow = true;
  take('min', schema.exclusiveMinimum);
  take('max', schema.exclusiveMaximum);
  take('step', schema.multipleOf);
  for (const member of ['minLength', 'maxLength', 'minItems', 'maxItems']) take(member, schema[member]);
  if (typeof schema.pattern === 'string') limits.pattern = schema.pattern;
  return limits;
}

/** Whether a value can be shown in a field's input and comes out of it as it was. */
function fits({ type, choices, isNumeric }: Field, value: unknown): boolean {
  const isOffered = (one: unknown) => choices.some((choice) => same(choice.value, one));
  switch (type) {
    case 'json': return true;
    case 'group': return isObject(value);
    case 'boolean': return typeof value === 'boolean';
    case 'integer':
    case 'number': return typeof value === 'number';
    case 'choice': return isOffered(value);
    case 'choices': return Array.isArray(value) && value.every(isOffered);
    case 'lines': return Array.isArray(value) && value.every((one) => (isNumeric ? typeof one === 'number' : typeof one === 'string' && one.trim() === one && one !== '' && !one.includes('\n')));
    case 'datetime-local': return typeof value === 'string' && !Number.isNaN(Date.parse(value));
    case 'date': return typeof value === 'string' && /^\d{4}-\d\d-\d\d$/.test(value);
    default: return typeof value === 'string';
  }
}

// --------------------------------------------------------------- the inputs

/** What the inputs hold at first. */
export function startValues(fields: Field[]): Values {
  const values: Values = {};
  for (const field of leaves(fields)) values[field.path] = startOf(field);
  return values;
}

function leaves(fields: Field[]): Field[] {
  return fields.flatMap((field) => (field.type === 'group' ? leaves(field.fields) : [field]));
}

function startOf({ type, choices, start }: Field): unknown {
  const isSet = start !== undefined && start !== null;
  const places = (wanted: unknown[]) => choices.flatMap((choice, i) => (wanted.some((one) => same(one, choice.value)) ? [String(i)] : []));
  switch (type) {
    case 'boolean': return start === true;
    case 'choice': return isSet ? (places([start])[0] ?? '') : '';
    case 'choices': return Array.isArray(start) ? places(start) : [];
    case 'lines': return Array.isArray(start) ? start.join('\n') : '';
    case 'json': return start === undefined ? '' : JSON.stringify(start, null, 2);
    case 'datetime-local': return isSet ? localTime(String(start)) : '';
    default: return isSet ? String(start) : '';
  }
}

/** A moment as an input of this kind has it: in the time of this machine, without a zone. */
function localTime(text: string): string {
  const ms = Date.parse(text);
  const local = new Date(ms - new Date(ms).getTimezoneOffset() * 60_000).toISOString();
  return local.endsWith(':00.000Z') ? local.slice(0, 16) : local.slice(0, 19);
}

/**
 * The inputs as data of the schema.
 *
 * @param data What is edited, where something is: what nobody touched stays as it was, and so does what is no field.
 */
export function readFields(fields: Field[], values: Values, data?: Json): { data: Json; faults: Faults } {
  const names = new Set(fields.map((field) => field.name));
  const read: Json = Object.fromEntries(Object.entries(data ?? {}).filter(([name]) => !names.has(name)));
  const faults: Faults = {};
  for (const field of fields) {
    if (field.type === 'group') readGroup(field, values, data, read, faults);
    else if (data !== undefined && same(values[field.path], startOf(field))) {
      if (Object.hasOwn(data, field.name)) read[field.name] = data[field.name];
      else if (field.required && field.type !== 'boolean') faults[field.path] = 'Needed.';
      else if (field.required) read[field.name] = values[field.path] === true;
    } else readInto(field, values[field.path], data !== undefined, read, faults);
  }
  return { data: read, faults };
}

/** A group that may be left out is, where nothing in it was filled in. */
function readGroup(field: Field, values: Values, data: Json | undefined, read: Json, faults: Faults) {
  const was = data?.[field.name];
  const inner = readFields(field.fields, values, data && (isObject(was) ? was : {}));
  const isTouched = leaves(field.fields).some((one) => !isEmpty(one, values[one.path]));
  if (!isTouched && !field.required && !isObject(was)) return;
  Object.assign(faults, inner.faults);
  read[field.name] = inner.data;
}

function isEmpty({ type }: Field, value: unknown): boolean {
  return type === 'boolean' ? value !== true : Array.isArray(value) ? value.length === 0 : (value ?? '') === '';
}

function readInto(field: Field, value: unknown, isEdit: boolean, read: Json, faults: Faults) {
  if (field.type !== 'boolean' && isEmpty(field, value)) {
    // Whoever empties an argument of a call may mean the empty text.
    if (isEdit && field.required && (field.type === 'text' || field.type === 'long') && !field.minLength) read[field.name] = '';
    else if (field.required) faults[field.path] = field.type === 'choices' ? 'Choose at least one.' : 'Needed.';
    else if (field.type === 'choices' && Array.isArray(field.start) && field.start.length > 0) read[field.name] = [];
    return;
  }
  const one = readField(field, value);
  if ('fault' in one) faults[field.path] = one.fault;
  else read[field.name] = one.value;
}

type Read = { value: unknown } | { fault: string };

function readField(field: Field, value: unknown): Read {
  switch (field.type) {
    case 'boolean': return { value: value === true };
    case 'choice': return { value: field.choices[Number(value)]?.value };
    case 'choices': return readItems(field, (value as string[]).map((place) => field.choices[Number(place)]?.value), 'Choose');
    case 'lines': return readLines(field, String(value));
    case 'number':
    case 'integer': return readNumber(field, String(value));
    case 'datetime-local': {
      const ms = Date.parse(String(value));
      return Number.isNaN(ms) ? { fault: 'A date and a time are needed.' } : { value: new Date(ms).toISOString() };
    }
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

function readItems({ minItems, maxItems }: Field, items: unknown[], verb: string): Read {
  if (minItems !== undefined && items.length < minItems) return { fault: `${verb} at least ${minItems}.` };
  if (maxItems !== undefined && items.length > maxItems) return { fault: `${verb} at most ${maxItems}.` };
  return { value: items };
}

function readLines(field: Field, text: string): Read {
  const lines = text.split('\n').map((line) => line.trim()).filter(Boolean);
  if (!field.isNumeric) return readItems(field, lines, 'Give');
  const numbers = lines.map(toNumber);
  return numbers.some(Number.isNaN) ? { fault: 'A number in each line is needed.' } : readItems(field, numbers, 'Give');
}

/** What a person writes as a number, with a point or a comma before its decimals. */
function toNumber(text: string): number {
  const plain = text.trim().replace(/^([^.,]*),([^.,]*)$/, '$1.$2');
  return plain === '' ? NaN : Number(plain);
}

function readNumber({ type, min, max, isAbove, isBelow, step }: Field, text: string): Read {
  const value = toNumber(text);
  if (!Number.isFinite(value)) return { fault: 'A number is needed.' };
  if (type === 'integer' && !Number.isInteger(value)) return { fault: 'A whole number is needed.' };
  if (min !== undefined && (isAbove ? value <= min : value < min)) return { fault: isAbove ? `More than ${min}.` : `At least ${min}.` };
  if (max !== undefined && (isBelow ? value >= max : value > max)) return { fault: isBelow ? `Less than ${max}.` : `At most ${max}.` };
  if (step !== undefined && step > 0 && Math.abs(value / step - Math.round(value / step)) > 1e-9) return { fault: `A multiple of ${step}.` };
  return { value };
}

function readText(field: Field, value: string): Read {
  const length = [...value].length;
  if (field.minLength !== undefined && length < field.minLength) return { fault: `At least ${field.minLength} characters.` };
  if (field.maxLength !== undefined && length > field.maxLength) return { fault: `At most ${field.maxLength} characters.` };
  if (field.type === 'email' && !/^[^@\s]+@[^@\s]+$/.test(value)) return { fault: 'An e-mail address is needed.' };
  if (field.type === 'url' && !URL.canParse(value)) return { fault: 'An address (URL) is needed.' };
  if (field.type === 'date' && !/^\d{4}-\d\d-\d\d$/.test(value)) return { fault: 'A date is needed.' };
  if (field.pattern !== undefined && !matches(field.pattern, value)) return { fault: `It has to match ${field.pattern}` };
  return { value };
}

/**
 * Whether a text has what a pattern says; true where that is not found out. A stranger's pattern that repeats groups can
 * keep a browser busy for hours, so only plain ones are tried; the hub tries none.
 */
function matches(pattern: string, value: string): boolean {
  const isPlain = !/\)[*+?{]|\\[1-9k]/.test(pattern) && (pattern.match(/[*+{]/g)?.length ?? 0) <= 3;
  if (!isPlain || value.length > 256) return true;
  try {
    return new RegExp(pattern, 'u').test(value);
  } catch {
    return true;
  }
}

// ------------------------------------------------------------------- faults

/**
 * Where the hub's fault belongs.
 *
 * @param path As the hub writes it: `$.name`, `$['a name'].list[0]`, with what stands before the data taken off.
 */
export function placeFault(fields: Field[], path: string, told: string): Faults {
  const message = withoutPath(told);
  const tokens = [...path.matchAll(/\.([^.[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]/g)].map((m) => m[1] ?? m[2] ?? m[3]!);
  // What is missing is a fault of what it is missing from.
  const missing = /^'(.+?)' is a required property|required field `(.+?)`/.exec(message);
  if (missing) tokens.push((missing[1] ?? missing[2])!);
  let at: Field | undefined;
  for (const token of tokens) {
    const next: Field | undefined = (at ? at.fields : fields).find((field) => field.name === token);
    if (!next) break;
    at = next;
  }
  if (!at) return { '': message };
  return { [at.path]: missing && at.name === tokens.at(-1) ? 'Needed.' : message };
}

/** A fault's words without the place that the hub puts behind them. */
export function withoutPath(message: string): string {
  return message.replace(/ - at `[^`]*`$/, '');
}

// ------------------------------------------------------------- small things

export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function same(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function words(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value);
}

function labelOf(name: string): string {
  const text = name.replace(/([a-z])([A-Z])/g, '$1 $2').replace(/[_-]+/g, ' ').trim();
  return text === '' ? name : text.charAt(0).toUpperCase() + text.slice(1);
}

function escape(name: string): string {
  return name.replaceAll('~', '~0').replaceAll('/', '~1');
}

function unescape(token: string): string {
  return token.replaceAll('~1', '/').replaceAll('~0', '~');
}
