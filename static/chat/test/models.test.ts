import { describe, expect, it } from 'vitest';
import { formatCount } from '../src/lib/format';
import { countProviders, findModels, isFree, priceWords, unreadable, type ModelInfo, type ModelQuery } from '../src/lib/models';

const MODELS: ModelInfo[] = [
  { id: 'acme/big-2', provider: 'acme', label: 'Big 2', context: 200_000, abilities: ['tools', 'images', 'reasoning'], price: { input: 5, output: 20 }, created: 30 },
  { id: 'acme/mini', provider: 'acme', label: 'Mini', context: 128_000, abilities: ['tools'], price: { input: 0.1, output: 0.4 }, created: 20 },
  { id: 'router/bolt/nova', provider: 'router', label: 'Nova', author: 'Bolt', context: 1_000_000, abilities: ['tools', 'images'], price: { input: 0, output: 0 }, created: 10 },
  { id: 'router/bolt/minimal', provider: 'router', label: 'Bolt minimal', price: { input: 0.1, output: 0.2 } },
  { id: 'demo/scripted', provider: 'demo', label: 'Demo', demo: true },
];

function names(query: Partial<ModelQuery>, favourites: string[] = []): string[] {
  const all: ModelQuery = { q: '', provider: null, abilities: [], starred: false, sort: 'name', ...query };
  return findModels(MODELS, all, favourites).map((model) => model.label!);
}

describe('models', () => {
  it('stand by provider and name, favourites before all, a demo last', () => {
    expect(names({})).toEqual(['Big 2', 'Mini', 'Bolt minimal', 'Nova', 'Demo']);
    expect(names({}, ['router/bolt/nova', 'acme/mini'])).toEqual(['Mini', 'Nova', 'Big 2', 'Bolt minimal', 'Demo']);
  });

  it('are found by all words, in name, label and author, the likeliest first', () => {
    expect(names({ q: 'bolt nova' })).toEqual(['Nova']);
    expect(names({ q: 'mini' })).toEqual(['Mini', 'Bolt minimal']);
    expect(names({ q: 'MINI' }, ['router/bolt/minimal'])).toEqual(['Bolt minimal', 'Mini']);
    expect(names({ q: 'ini' })).toEqual(['Mini', 'Bolt minimal']);
    expect(names({ q: 'nothing like it' })).toEqual([]);
  });

  it('are filtered by provider, by all wanted abilities, by favourites', () => {
    expect(names({ provider: 'router' })).toEqual(['Bolt minimal', 'Nova']);
    expect(names({ abilities: ['tools', 'images'] })).toEqual(['Big 2', 'Nova']);
    expect(names({ abilities: ['images'], provider: 'acme' })).toEqual(['Big 2']);
    expect(names({ starred: true }, ['acme/mini', 'gone/away'])).toEqual(['Mini']);
  });

  it('are sorted by what is known of them, and what is not known comes last', () => {
    expect(names({ sort: 'newest' }).slice(0, 3)).toEqual(['Big 2', 'Mini', 'Nova']);
    expect(names({ sort: 'price' })).toEqual(['Nova', 'Bolt minimal', 'Mini', 'Big 2', 'Demo']);
    expect(names({ sort: 'context' }, ['acme/mini'])).toEqual(['Nova', 'Big 2', 'Mini', 'Demo', 'Bolt minimal']);
  });

  it('are counted by provider', () => {
    expect(countProviders(MODELS)).toEqual([['acme', 2], ['demo', 1], ['router', 2]]);
  });
});

describe('prices and sizes', () => {
  it.each([[0, '$0'], [2.5, '$2.50'], [10, '$10'], [0.15, '$0.15'], [0.075, '$0.075'], [0.0375, '$0.0375'], [1.1, '$1.10']])('%d is %s', (usd, words) => {
    expect(priceWords(usd)).toBe(words);
  });

  it('know free from not known', () => {
    expect(MODELS.filter(isFree).map((model) => model.label)).toEqual(['Nova']);
  });

  it.each([[812, '812'], [8192, '8192'], [12_345, '12.3k'], [128_000, '128k'], [999_999, '1M'], [1_048_576, '1.05M']])('%d tokens are %s', (n, words) => {
    expect(formatCount(n)).toBe(words);
  });
});

describe('files that a model does not read', () => {
  const image = { mime: 'image/png', name: 'a.png' };
  const paper = { mime: 'application/pdf', name: 'b.pdf' };
  const text = { mime: 'text/csv', name: 'c.csv' };
  const sees: ModelInfo = { id: 'a/sees', abilities: ['images', 'files'] };
  const blind: ModelInfo = { id: 'a/blind', abilities: ['tools'] };
  const unknown: ModelInfo = { id: 'a/unknown' };

  it('are images where it is known that it has no eyes, never where nothing is known', () => {
    expect(unreadable(blind, 'Blind', [image])).toMatch(/^Blind cannot read images/);
    expect(unreadable(unknown, 'Unknown', [image])).toBeNull();
    expect(unreadable(sees, 'Sees', [image, paper])).toBeNull();
  });

  it('are other files unless it is known to read them; text is text for all', () => {
    expect(unreadable(blind, 'Blind', [paper])).toMatch(/files like b\.pdf/);
    expect(unreadable(unknown, 'Unknown', [paper])).toMatch(/^Unknown is not known to read files like b\.pdf/);
    expect(unreadable(blind, 'Blind', [text, { mime: 'application/json', name: 'd.json' }])).toBeNull();
    expect(unreadable(blind, 'Blind', [image, paper])).toMatch(/images or files like these/);
  });
});
