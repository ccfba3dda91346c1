import { describe, expect, it } from 'vitest';
import { BlockSplitter } from '../src/lib/markdown/blocks';
import { morph } from '../src/lib/markdown/morph';
import { renderBlock } from '../src/lib/markdown/render';

function render(markdown: string): HTMLElement {
  const host = document.createElement('div');
  for (const block of new BlockSplitter().update(markdown, false)) host.append(renderBlock(block));
  return host;
}

describe('rendered markdown', () => {
  it('holds no script, no handler and no dangerous address', () => {
    const host = render('<img src=x onerror=alert(1)> <script>alert(1)</script>\n\n[a](javascript:alert(1)) <a href="javascript:x">b</a>');
    expect(host.querySelector('script, [onerror], [href^="javascript"], img')).toBeNull();
    expect(host.textContent).toContain('alert(1)');
  });

  it('loads no image from elsewhere, and links to it', () => {
    const host = render('![A cat](https://example.org/cat.png)');
    expect(host.querySelector('img')).toBeNull();
    const link = host.querySelector('a')!;
    expect(link.getAttribute('href')).toBe('https://example.org/cat.png');
    expect(link.textContent).toBe('Image: A cat');
  });

  it.each(['//example.org/cat.png', 'data:image/svg+xml,<svg/>', 'ftp://example.org/cat.png'])('does not load %s either', (src) => {
    expect(render(`![x](<${src}>)`).querySelector('img')).toBeNull();
  });

  it('shows images of the hub itself', () => {
    expect(render('![x](/blobs/1.png)').querySelector('img')?.getAttribute('src')).toBe('/blobs/1.png');
  });

  it('opens links in another tab without telling where they come from', () => {
    const link = render('[docs](https://example.org)').querySelector('a')!;
    expect(link.getAttribute('target')).toBe('_blank');
    expect(link.getAttribute('rel')).toContain('noopener');
  });

  it('keeps task lists and the alignment of columns', () => {
    const host = render('- [x] done\n- [ ] to do\n\n| a | b |\n|---|--:|\n| 1 | 2 |');
    expect([...host.querySelectorAll('input')].map((i) => [i.type, i.checked, i.disabled])).toEqual([['checkbox', true, true], ['checkbox', false, true]]);
    expect(host.querySelector('td:last-child')?.getAttribute('align')).toBe('right');
  });

  it('gives a code block its language and its buttons', () => {
    const host = render('```Python title="x"\nprint("<b>")\n```');
    expect(host.querySelector('.code-lang')?.textContent).toBe('python');
    expect([...host.querySelectorAll('[data-act]')].map((b) => b.getAttribute('data-act'))).toEqual(['wrap', 'copy']);
    expect(host.querySelector('code')?.textContent).toBe('print("<b>")');
  });
});

describe('morphing', () => {
  function morphed(from: string, to: string): { host: HTMLElement; first: ChildNode | null } {
    const host = document.createElement('div');
    host.innerHTML = from;
    const first = host.firstChild;
    const wanted = document.createElement('div');
    wanted.innerHTML = to;
    morph(host, wanted);
    return { host, first };
  }

  it.each([
    ['<p>a</p>', '<p>ab</p>'],
    ['<p>a</p>', '<p>a <strong>b</strong></p>'],
    ['<p>a</p><p>b</p>', '<p>a</p>'],
    ['<p>a</p>', '<h1>a</h1>'],
    ['<ul><li>a</li></ul>', '<ul><li>a</li><li>b</li></ul>'],
    ['', '<p>a</p>'],
  ])('makes %s into %s', (from, to) => {
    expect(morphed(from, to).host.innerHTML).toBe(to);
  });

  it('keeps an element whose content grows', () => {
    const { host, first } = morphed('<p>one <em>two</em></p>', '<p>one <em>two three</em></p>');
    expect(host.firstChild).toBe(first);
  });
});
