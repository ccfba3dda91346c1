/**
 * The arithmetic of live settings: which scopes there are, what an edit becomes as a patch, what a conflict is about.
 *
 * Pure. A form holds *edits*, sparse, over the *effective* config that the hub told; `null` gives a value back to the
 * layers below.
 */

export type Scope = 'run' | 'conv' | 'client';
export type Edits = Record<string, unknown>;

/** What the panel can change, in its order. */
export const LABELS: Record<string, string> = {
  model: 'Model',
  reasoning: 'Reasoning',
  fallbacks: 'Fallbacks',
  temperature: 'Temperature',
  max_tokens: 'Max. tokens',
  rounds: 'Rounds',
  system: 'System prompt',
  prompt: 'System prompt',
  name: 'Name',
  max_turns: 'Turns',
  top_p: 'Top p',
  seed: 'Seed',
  retries: 'Retries',
  stop: 'Stop at',
  trim: 'Leave out the oldest',
  tools: 'Tools',
};

/** From little to much. */
const EFFORTS = ['none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max'];

/** What a member of the config may hold, as its JSON Schema says. */
export interface Member {
  min?: number;
  max?: number;
  choices: string[];
  maxItems?: number;
  maxLength?: number;
}

/** A member of a scope's config by its schema; null where the hub does not offer it. */
export function memberOf(scope: Scope, schema: Record<string, any> | undefined, name: string): Member | null {
  const resolve = (part: any): any => {
    if (typeof part?.$ref === 'string') return resolve(schema?.$defs?.[part.$ref.split('/').at(-1)!]);
    const variants: any[] | undefined = part?.anyOf ?? part?.oneOf;
    return variants ? resolve(variants.find((one) => one?.type !== 'null')) : part;
  };
  const root = resolve(schema);
  const member = resolve((scope === 'client' ? resolve(root?.properties?.llm) : root)?.properties?.[name]);
  if (!member) return null;
  const choices = (member.enum ?? []).map(String);
  return {
    choices: [...EFFORTS.filter((one) => choices.includes(one)), ...choices.filter((one: string) => !EFFORTS.includes(one))],
    ...(typeof member.minimum === 'number' ? { min: member.minimum } : {}),
    ...(typeof member.maximum === 'number' ? { max: member.maximum } : {}),
    ...(typeof member.maxItems === 'number' ? { maxItems: member.maxItems } : {}),
    ...(typeof (member.items?.maxLength ?? member.maxLength) === 'number' ? { maxLength: member.items?.maxLength ?? member.maxLength } : {}),
  };
}

/** Move an entry of a list by one place; at an end it stays. */
export function moved<T>(list: readonly T[], from: number, by: -1 | 1): T[] {
  const to = from + by;
  if (to < 0 || to >= list.length) return [...list];
  return list.map((entry, i) => (i === from ? list[to]! : i === to ? list[from]! : entry));
}

/** Texts at which the model stops, one in each line; a line break in one of them is written `\\n`. */
export function readStops(text: string): string[] {
  return text.split('\n').filter((line) => line !== '').map((line) => line.replaceAll('\\n', '\n'));
}

export function writeStops(stops: readonly string[]): string {
  return stops.map((stop) => stop.replaceAll('\n', '\\n')).join('\n');
}

/** A device keeps what is meant for its replies in the section `llm`. */
export function toPatch(scope: Scope, edits: Edits): Edits {
  return scope === 'client' ? { llm: edits } : edits;
}

export function sectionOf(scope: Scope, doc: Record<string, any> | undefined): Record<string, any> {
  return (scope === 'client' ? doc?.llm : doc) ?? {};
}

/** Set a value in the edits; what the hub has already is no edit. */
export function edit(edits: Edits, effective: Record<string, any>, name: string, value: unknown): Edits {
  const { [name]: _, ...others } = edits;
  return sameJson(value, effective[name] ?? null) ? others : { ...others, [name]: value };
}

/**
 * Switch a tool by its key, or all of a connector by its name. Off is told, on takes that back where it was told at this
 * scope, else it is told too.
 */
export function editTool(edits: Edits, config: Record<string, any>, effective: Record<string, any>, key: string, isOn: boolean): Edits {
  const { [key]: _, ...others } = (edits.tools ?? {}) as Record<string, unknown>;
  const { tools: __, ...rest } = edits;
  const without = Object.keys(others).length > 0 ? { ...rest, tools: others } : rest;
  if (isToolOn(without, effective, key) === isOn) return without;
  const isTakenBack = isOn && config.tools?.[key] === false && effective.tools?.[connectorOf(key)] !== false;
  return { ...rest, tools: { ...others, [key]: isTakenBack ? null : isOn } };
}

/** Whether a tool is on: by its own switch, else by its connector's. */
export function isToolOn(edits: Edits, effective: Record<string, any>, key: string): boolean {
  const edited = (edits.tools ?? {}) as Record<string, unknown>;
  if (key in edited) return edited[key] !== false;
  if (typeof effective.tools?.[key] === 'boolean') return effective.tools[key];
  const connector = connectorOf(key);
  return connector === '' || isToolOn(edits, effective, connector);
}

/** The connector in a tool's key `connector/name`; '' where it has none, or is a connector's name itself. */
function connectorOf(key: string): string {
  return key.includes('/') ? key.slice(0, key.indexOf('/')) : '';
}

/** Members of a config that hold agents by their ids, each of which is set one by one. */
export const CASTS: readonly string[] = ['bots', 'agents'];

/** Set a member of one agent in the edits; what the hub has already is no edit. */
export function editAgent(edits: Edits, effective: Record<string, any>, cast: string, agent: string, name: string, value: unknown): Edits {
  const all = (edits[cast] ?? {}) as Record<string, Edits>;
  const mine = edit(all[agent] ?? {}, effective[cast]?.[agent] ?? {}, name, value);
  const { [agent]: _, ...others } = all;
  const { [cast]: __, ...rest } = edits;
  const kept = Object.keys(mine).length > 0 ? { ...others, [agent]: mine } : others;
  return Object.keys(kept).length > 0 ? { ...rest, [cast]: kept } : rest;
}

/** Whether config holds all that a patch sets. */
export function hasAll(config: unknown, patch: unknown): boolean {
  if (typeof patch !== 'object' || patch === null || Array.isArray(patch)) return sameJson(config ?? null, patch ?? null);
  const held = typeof config === 'object' && config !== null ? (config as Record<string, unknown>) : {};
  return Object.entries(patch).every(([name, value]) => hasAll(held[name], value));
}

/** What is edited, by the path of its member: `temperature`, `bots.b1.temperature`. */
export function editPaths(edits: Edits): string[] {
  return Object.entries(edits).flatMap(([name, value]) =>
    !CASTS.includes(name) || typeof value !== 'object' || value === null ? [name]
    : Object.entries(value as Record<string, Edits>).flatMap(([agent, mine]) => Object.keys(mine).map((member) => `${name}.${agent}.${member}`)),
  );
}

/** What stands at a path of `editPaths`. */
export function valueAt(doc: Record<string, any>, path: string): unknown {
  return path.split('.').reduce<any>((at, name) => at?.[name], doc);
}

/** The edits without those at some paths. */
export function withoutPaths(edits: Edits, paths: readonly string[]): Edits {
  let rest = edits;
  for (const path of paths) {
    const [name, agent, member] = path.split('.') as [string, string?, string?];
    if (agent === undefined || member === undefined) {
      const { [name]: _, ...others } = rest;
      rest = others;
    } else {
      const value = valueAt(rest, path);
      rest = editAgent(rest, { [name]: { [agent]: { [member]: value } } }, name, agent, member, value);
    }
  }
  return rest;
}

/** Which of the edits stand against what somebody else set since: the paths whose value is no longer what was seen. */
export function conflicts(edits: Edits, seen: Record<string, any>, theirs: Record<string, any>): string[] {
  return editPaths(edits).filter((path) => {
    const now = valueAt(theirs, path) ?? null;
    return !sameJson(valueAt(seen, path) ?? null, now) && !sameJson(valueAt(edits, path), now);
  });
}

/** The name of a path for people: `Temperature of Ada`. */
export function pathLabel(path: string, names: Record<string, string> = {}): string {
  const [first, agent, member] = path.split('.') as [string, string?, string?];
  if (agent === undefined || member === undefined) return LABELS[first] ?? first;
  return `${LABELS[member] ?? member} of ${names[agent] ?? agent}`;
}

/** A patch in few words: `Temperature 0.2, System prompt changed`; that of an agent begins with its name. */
export function describePatch(patch: Record<string, any>, names: Record<string, string> = {}): string {
  const words = Object.entries(patch).map(([name, value]) => {
    const label = LABELS[name] ?? name;
    if (CASTS.includes(name) && typeof value === 'object' && value !== null) {
      return Object.entries(value).map(([agent, mine]) => `${names[agent] ?? agent}: ${mine === null ? 'removed' : describePatch(mine as Record<string, any>)}`).join('; ');
    }
    if (value === null) return `${label} reset`;
    if (name === 'tools' && typeof value === 'object') {
      return Object.entries(value as Record<string, unknown>).map(([tool, on]) => `${tool} ${on === false ? 'off' : 'on'}`).join(', ');
    }
    if (typeof value === 'boolean') return `${label} ${value ? 'on' : 'off'}`;
    if (typeof value === 'number') return `${label} ${value}`;
    if (Array.isArray(value) && value.length === 0) return `${label} none`;
    if (name === 'fallbacks' && Array.isArray(value)) return `${label} ${value.join(', then ')}`;
    if (typeof value === 'string' && value.length <= 40) return `${label} ${name === 'system' || name === 'prompt' ? 'changed' : value}`;
    return `${label} changed`;
  });
  return words.join(', ') || 'No change';
}

export function describeValue(value: unknown): string {
  if (value === null || value === undefined) return 'the default';
  if (typeof value === 'string') return value.length > 60 ? `“${value.slice(0, 60)}…”` : `“${value}”`;
  if (Array.isArray(value)) return value.map(describeValue).join(', ') || 'none';
  if (typeof value === 'object') return describePatch(value as Record<string, any>);
  if (typeof value === 'boolean') return value ? 'on' : 'off';
  return String(value);
}

export function sameJson(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
