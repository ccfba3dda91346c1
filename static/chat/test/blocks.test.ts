import { describe, expect, it } from 'vitest';
import { BlockSplitter, settle } from '../src/lib/markdown/blocks';
import { blockHtml } from '../src/lib/markdown/render';

const SAMPLE = [
  '# Title', '', 'A paragraph with **bold** and `code`,', 'on two lines.', '', '1. one', '2. two', '', '   still two', '', '3. three', '',
  '```python', 'def f():', '', '    return "|"', '```', '', '| a | b |', '|---|--:|', '| 1 | 2 |', '| 3 | 4 |', '', '> quoted', '', 'The end.',
].join('\n');

function stream(text: string, size: number): BlockSplitter {
  const splitter = new BlockSplitter();
  for (let i = size; i < text.length + size; i += size) splitter.update(text.slice(0, i), true);
  return splitter;
}

describe('splitting a growing text', () => {
  it.each([1, 2, 3, 7, 50])('gives what the whole text gives, fed %i characters at a time', (size) => {
    const whole = new BlockSplitter().update(SAMPLE, false);
    const grown = stream(SAMPLE, size).update(SAMPLE, false);
    expect(grown.map((b) => b.raw.trimEnd())).toEqual(whole.map((b) => b.raw.trimEnd()));
    const types = grown.map((b) => b.token.type);
    expect(types).toEqual(['heading', 'paragraph', 'list', 'code', 'table', 'blockquote', 'paragraph']);
  });

  it.each([1, 4, 11])('never changes a block that it has closed, fed %i characters at a time', (size) => {
    const splitter = new BlockSplitter();
    const closed: object[] = [];
    for (let i = size; i < SAMPLE.length + size; i += size) {
      const blocks = splitter.update(SAMPLE.slice(0, i), true);
      blocks.forEach((block, place) => {
        if (closed[place]) expect(block).toBe(closed[place]);
        else if (!block.open) closed[place] = block;
      });
    }
    expect(closed.length).toBeGreaterThan(3);
  });

  it('keeps the objects of closed blocks when the text is complete', () => {
    const splitter = stream(SAMPLE, 5);
    const before = splitter.update(SAMPLE, true).filter((b) => !b.open);
    const after = splitter.update(SAMPLE, false);
    expect(after.slice(0, before.length)).toEqual(before);
    expect(after[0]).toBe(before[0]);
  });

  it('keeps two open, so that a list that goes on stays one list', () => {
    const splitter = new BlockSplitter();
    splitter.update('1. one\n\n2', true);
    const blocks = splitter.update('1. one\n\n2. two', true);
    expect(blocks).toHaveLength(1);
  });

  it('begins anew when the text is another one', () => {
    const splitter = stream(SAMPLE, 9);
    const blocks = splitter.update('Something else', true);
    expect(blocks.map((b) => b.raw)).toEqual(['Something else']);
  });

  it('takes link definitions that come late into account at the end', () => {
    const text = 'See [the docs][d].\n\nMore.\n\nEven more.\n\n[d]: https://example.org/docs';
    const blocks = stream(text, 4).update(text, false);
    expect(blockHtml(blocks[0]!)).toContain('href="https://example.org/docs"');
  });
});

describe('what of an open block is shown', () => {
  it.each([
    ['half a table header', '| a | b', ''],
    ['a table header without its delimiter row', '| a | b |\n', ''],
    ['half a delimiter row', '| a | b |\n|--', ''],
    ['a bare list marker', 'Text\n-', 'Text'],
    ['a bare number', 'Text\n12.', 'Text'],
    ['what may become a heading', '##', ''],
    ['what may become an underline', 'Title\n===', 'Title'],
    ['a fence that is still typed', '``', ''],
  ])('withholds %s', (_, raw, shown) => {
    expect(settle(raw).trim()).toBe(shown);
  });

  it('shows a table as soon as it is one', () => {
    expect(settle('| a | b |\n|---|---|\n| 1')).toContain('| 1');
  });

  it('hides the language of a fence until its line ends, and the end of the fence while it is typed', () => {
    expect(settle('```pyth')).toBe('```\n');
    expect(settle('```python\nx = 1\n``')).toBe('```python\nx = 1');
  });

  it.each([
    ['bold', 'Some **bold te', 'Some **bold te**'],
    ['italics', 'Some *slanted te', 'Some *slanted te*'],
    ['code', 'Some `code te', 'Some `code te`'],
    ['strike', 'Some ~~old te', 'Some ~~old te~~'],
    ['bold that begins', 'Some **', 'Some '],
    ['bold that is complete', 'Some **bold** text', 'Some **bold** text'],
    ['a product', '2 * 3 * 4', '2 * 3 * 4'],
    ['snake case', 'the some_long_name here', 'the some_long_name here'],
    ['a star in code', '`a * b` and `**`', '`a * b` and `**`'],
    ['list stars', '* one\n* two', '* one\n* two'],
  ])('closes %s', (_, raw, shown) => {
    expect(settle(raw)).toBe(shown);
  });

  it.each([
    ['a label', 'See [the do', 'See the do'],
    ['an address', 'See [the docs](https://exa', 'See the docs'],
  ])('shows a half link as its text: %s', (_, raw, shown) => {
    expect(settle(raw)).toBe(shown);
  });
});
