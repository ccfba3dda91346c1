import { describe, expect, it } from 'vitest';
import { diff, diffDefinitions, diffLines, diffWords } from '../src/lib/diff';

const mark = (pieces: { change: string; text: string }[]) => pieces.map(({ change, text }) => ({ same: text, gone: `[-${text}-]`, new: `{+${text}+}` })[change]).join('');

describe('a difference', () => {
  it.each<[string, string, string]>([
    ['', '', ''],
    ['Read a file', 'Read a file', 'Read a file'],
    ['Read a file', 'Read or write a file', 'Read {+or write +}a file'],
    ['Sends mail.', '', '[-Sends mail.-]'],
    ['Read', 'Delete', '[-Read-]{+Delete+}'],
  ])('of %j and %j', (before, after, marked) => expect(mark(diffWords(before, after))).toBe(marked));

  it('gives both texts back, whatever they are', () => {
    const texts = ['a b c d', 'd c b a', 'b b a c d d', '', 'x'];
    for (const before of texts) {
      for (const after of texts) {
        const pieces = diff([...before], [...after]);
        expect(pieces.filter((p) => p.change !== 'new').map((p) => p.text).join('')).toBe(before);
        expect(pieces.filter((p) => p.change !== 'gone').map((p) => p.text).join('')).toBe(after);
      }
    }
  });

  it('of what is too large is told as a whole', () => {
    const [a, b] = [Array.from({ length: 2000 }, (_, i) => `a${i} `), Array.from({ length: 2000 }, (_, i) => `b${i} `)];
    expect(diff(a, b).map((p) => p.change)).toEqual(['gone', 'new']);
  });

  it('of lines leaves out what is far from it', () => {
    const lines = Array.from({ length: 9 }, (_, i) => `line ${i}`);
    const changed = lines.with(6, 'other');
    expect(diffLines(lines.join('\n'), changed.join('\n')).map((l) => `${l.change} ${l.text}`)).toEqual([
      'skipped …', 'same line 4', 'same line 5', 'gone line 6', 'new other', 'same line 7', 'same line 8',
    ]);
  });
});

describe('a changed definition', () => {
  const before = { description: 'Sends mail.', risk: 'write', input: { type: 'object', properties: { to: { type: 'string' } } } };

  it('tells each thing that is another now', () => {
    const after = { description: 'Sends mail to anybody.', risk: 'danger', input: { properties: { to: { type: 'string' }, bcc: { type: 'string' } }, type: 'object' } };
    const { description, input, risk } = diffDefinitions(before, after);
    expect(mark(description!)).toBe('Sends mail{+ to anybody+}.');
    expect(risk).toEqual({ before: 'write', after: 'danger' });
    expect(input!.filter((line) => line.change === 'new').map((line) => line.text.trim())).toEqual(['"bcc": {', '"type": "string"', '},']);
  });

  it('is none where only the order is another', () => {
    const after = { input: { properties: { to: { type: 'string' } }, type: 'object' }, risk: 'write', description: 'Sends mail.' };
    expect(diffDefinitions(before, after)).toEqual({ description: null, input: null, risk: null });
  });
});
