/**
 * Run kinds: which there are, what of a kind's config is its own, and its agents as lists of knobs. Pure.
 *
 * What is set up for a run is sparse, over the kind's defaults and what the conversation says; the hub has the last word.
 */
import { mergePatch, type Operations } from '@sag/client';
import { titled } from './agents';
import { fieldsOf, isObject, type Field } from './forms';
import { CASTS, LABELS } from './live';

export type Kind = Operations['kind.list']['result']['kinds'][number];
export type Setup = Record<string, any>;

/** What the simplest kind is for, beside the others. */
const CHAT = 'One assistant answers, with the tools that it needs.';

export function kindTitle(kind: Pick<Kind, 'name' | 'title'>): string {
  return kind.title || kind.name.charAt(0).toUpperCase() + kind.name.slice(1).replace(/[._-]+/g, ' ');
}

export function kindAbout(kind: Pick<Kind, 'name' | 'description'>): string {
  return kind.name === 'chat' ? CHAT : kind.description;
}

function rootOf(schema: Record<string, any>): Record<string, any> {
  const { $ref, $defs } = schema;
  return typeof $ref === 'string' ? { ...($defs?.[$ref.split('/').at(-1)!] ?? {}), $defs } : schema;
}

/** The members of a kind's config that the chat's lacks. */
export function ownMembers(kind: Kind, chat: Kind | undefined): string[] {
  const common = new Set(Object.keys(chat ? (rootOf(chat.schema).properties ?? {}) : {}));
  return Object.keys(rootOf(kind.schema).properties ?? {}).filter((name) => !common.has(name));
}

/** A form of some members of a kind's config, but its bots; `data` is what it begins with. */
export function fieldsOfKind(kind: Kind, names: readonly string[], data: Setup): Field[] {
  const root = rootOf(kind.schema);
  const wanted = names.filter((name) => name !== castOf(kind.schema)?.name);
  const properties = Object.fromEntries(wanted.map((name) => [name, root.properties?.[name]]));
  return explained(fieldsOf({ type: 'object', properties, $defs: root.$defs }, data), root);
}

/** What is a kind's own and can be set in one place, beside what every kind has. */
export function ownKnobs(kind: Kind, chat: Kind | undefined): Field[] {
  return fieldsOfKind(kind, ownMembers(kind, chat), {}).filter((field) => SIMPLE.has(field.type));
}

/** Fields with what their struct's description says of each; it has a line for each under `Attributes:`. */
function explained(fields: Field[], schema: Record<string, any>): Field[] {
  const [, attributes = ''] = String(schema.description ?? '').split(/^\s*Attributes:\s*$/m);
  const said = new Map<string, string>();
  for (const [, names, words] of attributes.matchAll(/^ *([\w, ]+): (.+(?:\n {9,}.+)*)/gm)) {
    for (const name of names!.split(',')) said.set(name.trim(), words!.replace(/\s+/g, ' ').replaceAll('`', ''));
  }
  return fields.map(({ fallback: _, ...field }) => ({
    ...field,
    label: LABELS[field.name] ?? field.label,
    help: said.get(field.name) ?? field.help.split(/\s*\bAttributes:/)[0]!.replaceAll('`', ''),
    choices: field.choices.map(({ value, label }) => ({ value, label: label.replace(/_/g, ' ') })),
    fields: explained(field.fields, { description: field.help }),
  }));
}

/** The member of a config that holds its agents by id, and the schema of one of them; null where there is none. */
export function castOf(schema: Record<string, any> | undefined): { name: string; schema: Record<string, any> } | null {
  const root = rootOf(schema ?? {});
  for (const name of CASTS) {
    const one = root.properties?.[name]?.type === 'object' ? root.properties[name].additionalProperties : null;
    if (!isObject(one)) continue;
    const real = (one.anyOf as any[] | undefined)?.find((variant) => variant?.type !== 'null') ?? one;
    return { name, schema: { ...rootOf({ ...real, $defs: root.$defs }), $defs: root.$defs } };
  }
  return null;
}

const ORDER = ['name', 'title', 'model', 'temperature', 'max_tokens', 'tools', 'system', 'prompt'];
const SIMPLE = new Set(['text', 'long', 'number', 'integer', 'boolean', 'choice']);

/** What can be set of an agent, in the order in which it is shown. */
export function knobsOf(schema: Record<string, any> | undefined): Field[] {
  const cast = castOf(schema);
  if (!cast) return [];
  const place = (name: string) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return explained(fieldsOf(cast.schema), cast.schema)
    .filter((field) => SIMPLE.has(field.type))
    .sort((a, b) => place(a.name) - place(b.name));
}

/** What holds for a run that is set up so: the kind's defaults, what the conversation says, what is set up. */
export function inForce(kind: Kind, below: Setup, setup: Setup): Setup {
  return mergePatch(mergePatch(kind.defaults, below), setup);
}

/** Set a member of an agent; null takes it back. */
export function setAgent(setup: Setup, cast: string, agent: string, name: string, value: unknown): Setup {
  const all = { ...(setup[cast] as Setup | undefined) };
  const { [name]: _, ...others } = (all[agent] ?? {}) as Setup;
  const mine = value === null ? others : { ...others, [name]: value };
  return withCast(setup, cast, Object.keys(mine).length === 0 ? without(all, agent) : { ...all, [agent]: mine });
}

/** One more agent, under an id that is not taken. */
export function addAgent(setup: Setup, cast: string, effective: Setup): Setup {
  const taken = Object.keys((effective[cast] as Setup | undefined) ?? {});
  let number = taken.length + 1;
  while (taken.includes(`b${number}`)) number += 1;
  const member = cast === 'bots' ? 'name' : 'title';
  return withCast(setup, cast, { ...(setup[cast] as Setup | undefined), [`b${number}`]: { [member]: `Agent ${number}` } });
}

/** Without an agent that was added here. */
export function dropAgent(setup: Setup, cast: string, agent: string): Setup {
  return withCast(setup, cast, without((setup[cast] ?? {}) as Setup, agent));
}

function without(all: Setup, agent: string): Setup {
  const { [agent]: _, ...others } = all;
  return others;
}

function withCast(setup: Setup, cast: string, all: Setup): Setup {
  const { [cast]: _, ...rest } = setup;
  return Object.keys(all).length === 0 ? rest : { ...rest, [cast]: all };
}

/** What an agent of a config is called. */
export function agentName(id: string, agent: any): string {
  return String(agent?.name || agent?.title || titled(id));
}

/** What differs from what holds anyway, of some members that a form gave. */
export function differing(data: Setup, below: Setup): Setup {
  return Object.fromEntries(Object.entries(data).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(below[name])));
}

/** A setup in a few words: `Ada and Bob, 10 turns`. */
export function setupWords(effective: Setup): string {
  const cast = CASTS.find((name) => isObject(effective[name]) && Object.keys(effective[name]).length > 0);
  const all = Object.entries((cast ? effective[cast] : {}) as Record<string, any>).map(([id, agent]) => agentName(id, agent));
  const names = all.length > 3 ? `${all.length} agents` : all.length > 1 ? `${all.slice(0, -1).join(', ')} and ${all.at(-1)}` : (all[0] ?? '');
  const turns = typeof effective.max_turns === 'number' ? `${effective.max_turns} turns` : '';
  return [names, turns].filter(Boolean).join(', ');
}
