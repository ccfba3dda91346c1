import { describe, expect, it } from 'vitest';
import { blocksOf, cellText, imagesOf, isNumeric, resultName, tableOf, tableText, tail } from '../src/lib/results';

const text = (t: string) => ({ kind: 'text', text: t });
const BOOKINGS = [{ person: 'Ana Berg', hours: 4, tags: ['web', 'api'] }, { person: 'Bo Lind', hours: 7.5, note: null }];

describe('a result', () => {
  it.each<[unknown, string[]]>([
    [undefined, []],
    ['', []],
    ['Done.', ['text']],
    ['{"a":1}', ['data']],
    [42, ['data']],
    [[1, 2], ['data']],
    [BOOKINGS, ['table']],
    [{ people: BOOKINGS, total: 2 }, ['data', 'table']],
    [{ people: BOOKINGS, filter: { week: 12 } }, ['data']],
    [{ content: [text('Two people.'), text(JSON.stringify(BOOKINGS))] }, ['text', 'table']],
    [{ content: [{ kind: 'image', ref: 'f1', mime: 'image/png', name: 'a.png' }, { kind: 'file', ref: 'f2', mime: 'audio/wav', name: '' }] }, ['media', 'media']],
    [{ content: [{ kind: 'link', uri: 'https://example.org/a' }, { kind: 'table', columns: ['a'], rows: [[1]] }] }, ['link', 'table']],
    [{ content: [{ kind: 'hologram', size: 3 }] }, ['data']],
    [{ content: [{ kind: 'table', columns: 'a' }] }, ['data']],
    [{ content: [] }, []],
  ])('of %j is %j', (result, kinds) => expect(blocksOf(result).map((block) => block.kind)).toEqual(kinds));

  it('says data once that comes as text too, in whatever order', () => {
    const data = { a: 1, b: [2] };
    expect(blocksOf({ content: [text('{"b": [2], "a": 1}')], data })).toEqual([{ kind: 'data', value: data }]);
    expect(blocksOf({ content: [text('{"a": 2}')], data }).length).toBe(2);
  });

  it('has its images told apart', () => {
    expect(imagesOf({ content: [text('x'), { kind: 'image', ref: 'f1', mime: 'image/png', name: 'a.png' }, { kind: 'image' }] }).map((part) => part.ref)).toEqual(['f1']);
    expect(imagesOf('text')).toEqual([]);
  });
});

describe('a link', () => {
  const link = (uri: string) => {
    const [block] = blocksOf({ content: [{ kind: 'link', uri, name: 'It' }] });
    return block?.kind === 'link' ? [block.link.href, block.link.host] : null;
  };
  it('leads to the web alone', () => {
    expect(link('https://example.org/a?b')).toEqual(['https://example.org/a?b', 'example.org']);
    expect(link('javascript:alert(1)')).toEqual([null, '']);
    expect(link('demo://resource/1')).toEqual([null, '']);
    expect(link('not an address')).toEqual([null, '']);
  });
});

describe('a table', () => {
  const table = tableOf(BOOKINGS, 'Bookings')!;
  it('is made of flat objects, with all of their members', () => {
    expect(table.columns).toEqual(['person', 'hours', 'tags', 'note']);
    expect(table.rows[0]).toEqual(['Ana Berg', 4, ['web', 'api'], undefined]);
    expect([tableOf([], ''), tableOf([{ a: {} }], ''), tableOf([{}], ''), tableOf([1], '')]).toEqual([null, null, null, null]);
  });
  it('has cells in words', () => expect(table.rows[0]!.map(cellText)).toEqual(['Ana Berg', '4', 'web, api', '']));
  it('knows its columns of numbers', () => expect(table.columns.map((_, i) => isNumeric(table, i))).toEqual([false, true, false, false]));
  it('is copied as spreadsheets take it', () => expect(tableText({ title: '', columns: ['a', 'b'], rows: [['x\ty', 1]] })).toBe('a\tb\nx y\t1'));
});

describe('long output', () => {
  it('is shown from the beginning of a line', () => {
    expect(tail('short', 10)).toEqual({ text: 'short', isCut: false });
    expect(tail('one\ntwo\nthree', 7)).toEqual({ text: 'three', isCut: true });
    expect(tail('x'.repeat(20), 7)).toEqual({ text: 'x'.repeat(7), isCut: true });
  });
});

it('names the file of a result', () => expect([resultName('list people', 'application/json'), resultName('', 'text/plain')]).toEqual(['list_people.json', 'result.txt']));
