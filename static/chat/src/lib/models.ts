/**
 * The models to choose from: what is known of each in words, which of them a person looks for, what one cannot read. Pure.
 */
import type { Operations } from '@sag/client';
import { filterModels } from './commands';

/** A model as the hub lists it. */
export type ListedModel = Operations['model.list']['result']['models'][number];
export type Ability = NonNullable<ListedModel['abilities']>[number];

/** A model by its full name; of one that nobody lists that is all. */
export type ModelInfo = Partial<Omit<ListedModel, 'model'>> & { id: string };

export const ABILITIES: { ability: Ability; label: string; icon: 'tool' | 'image' | 'file' | 'think' | 'braces' }[] = [
  { ability: 'tools', label: 'Tools', icon: 'tool' },
  { ability: 'images', label: 'Images', icon: 'image' },
  { ability: 'files', label: 'Files', icon: 'file' },
  { ability: 'reasoning', label: 'Reasoning', icon: 'think' },
  { ability: 'json', label: 'JSON', icon: 'braces' },
];

export function isDemo(model: ModelInfo | null): boolean {
  return model !== null && (model.demo === true || model.provider === 'demo' || model.id.startsWith('demo/'));
}

export function providerOf(model: ModelInfo): string {
  return model.provider ?? model.id.slice(0, Math.max(0, model.id.indexOf('/')));
}

/** A name without its provider, for a model that nobody lists. */
export function shortName(id: string): string {
  return id.slice(id.indexOf('/') + 1);
}

// -------------------------------------------------------------------- words

/** A price for a million tokens: cents where there are any, more digits where it is less than ten cents. */
export function priceWords(usd: number): string {
  if (usd === 0) return '$0';
  if (usd >= 0.1) return `$${Number.isInteger(usd) ? usd : usd.toFixed(2)}`;
  return `$${Number(usd.toPrecision(3))}`;
}

export function isFree(model: ModelInfo): boolean {
  return model.price !== undefined && model.price.input === 0 && model.price.output === 0;
}

// ---------------------------------------------------------------- searching

export type Sort = 'name' | 'newest' | 'price' | 'context';

export interface ModelQuery {
  q: string;
  provider: string | null;
  /** All of them are wanted; a model of which nothing is known has none. */
  abilities: Ability[];
  /** Favourites alone. */
  starred: boolean;
  sort: Sort;
}

/** The models that are looked for, the likeliest first. */
export function findModels(models: ModelInfo[], query: ModelQuery, favourites: readonly string[]): ModelInfo[] {
  const starred = new Set(favourites);
  const found = filterModels(models, query.q).filter(
    (model) =>
      (query.provider === null || providerOf(model) === query.provider) &&
      query.abilities.every((ability) => model.abilities?.includes(ability)) &&
      (!query.starred || starred.has(model.id)),
  );
  const keys = new Map(found.map((model) => [model, keyOf(model, query, starred)]));
  return found.sort((a, b) => keys.get(a)! - keys.get(b)! || compareNames(a, b));
}

/** What a model is sorted by, the smallest first; names decide where that is the same. */
function keyOf(model: ModelInfo, { q, sort }: ModelQuery, starred: Set<string>): number {
  switch (sort) {
    case 'newest': return -(model.created ?? 0);
    case 'price': return model.price ? model.price.input + model.price.output / 1e6 : Infinity;
    case 'context': return -(model.context ?? 0);
    case 'name': return (starred.has(model.id) ? 0 : isDemo(model) ? 8 : 4) + (q.trim() === '' ? 0 : likeness(model, q.trim().toLowerCase()));
  }
}

/** How near a name is to what was typed: 0 it is that, 1 it begins so, 2 a word in it begins so, 3 it has that somewhere. */
function likeness(model: ModelInfo, q: string): number {
  const names = [model.label ?? '', shortName(model.id), model.id].map((name) => name.toLowerCase());
  if (names.includes(q)) return 0;
  if (names.some((name) => name.startsWith(q))) return 1;
  return names.some((name) => name.split(/[\s/:._-]+/).some((word) => word.startsWith(q))) ? 2 : 3;
}

function compareNames(a: ModelInfo, b: ModelInfo): number {
  const provider = providerOf(a).localeCompare(providerOf(b));
  return provider || (a.label ?? a.id).localeCompare(b.label ?? b.id) || a.id.localeCompare(b.id);
}

/** How many models each provider has among some, the providers in their order. */
export function countProviders(models: ModelInfo[]): [provider: string, count: number][] {
  const counts = new Map<string, number>();
  for (const model of models) counts.set(providerOf(model), (counts.get(providerOf(model)) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a.localeCompare(b));
}

// -------------------------------------------------------------------- files

/** What the hub hands to every model as text. */
const TEXTS = /^(?:text\/|application\/(?:json|xml|yaml|toml|sql))/i;

/**
 * What a model will not read of the files of a message, in a sentence; null where it reads them all.
 *
 * The hub sends images unless the model is known not to see them, and other files only where it is known to read them.
 */
export function unreadable(model: ModelInfo, name: string, files: { mime: string; name: string }[]): string | null {
  const { abilities } = model;
  const isImage = (mime: string) => /^image\//i.test(mime);
  const images = files.filter(({ mime }) => isImage(mime));
  const others = files.filter(({ mime }) => !isImage(mime) && !TEXTS.test(mime));
  const blind = abilities !== undefined && !abilities.includes('images') && images.length > 0;
  const deaf = !abilities?.includes('files') && others.length > 0;
  if (!blind && !deaf) return null;
  const what = blind && deaf ? 'images or files like these' : blind ? 'images' : `files like ${others[0]!.name}`;
  return abilities === undefined ? `${name} is not known to read ${what}: it is told the name alone.` : `${name} cannot read ${what}: it is told the name alone.`;
}
