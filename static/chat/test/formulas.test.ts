import { describe, expect, it } from 'vitest';
import { BlockSplitter } from '../src/lib/markdown/blocks';
import { withoutHtml } from '../src/lib/markdown/diagrams.svelte';
import { isOpenDisplay, withoutFormulas } from '../src/lib/markdown/formulas';
import { blockHtml } from '../src/lib/markdown/render';

function html(markdown: string, growing = false): string {
  return new BlockSplitter().update(markdown, growing).map(blockHtml).join('');
}

/** The formulas of a text, display ones in brackets. */
function formulas(markdown: string, growing = false): string[] {
  const host = document.createElement('div');
  host.innerHTML = html(markdown, growing);
  return [...host.querySelectorAll('.formula')].map((e) => (e.tagName === 'DIV' ? `[${e.textContent}]` : e.textContent!));
}

describe('formulas', () => {
  it.each<[string, string[]]>([
    ['It is $x^2$ here', ['x^2']],
    ['($a_1$, $b_1$)', ['a_1', 'b_1']],
    ['So \\(a < b\\) holds', ['a < b']],
    ['$$\n\\int_0^1 x\\,dx\n$$', ['[\\int_0^1 x\\,dx]']],
    ['\\[ e = mc^2 \\]', ['[e = mc^2]']],
    ['Text before\n$$x$$\nand after', ['[x]']],
    ['Within $$x$$ a line', ['[x]']],
    ['- $x$\n- $y$', ['x', 'y']],
    ['| a |\n|---|\n| $x$ |', ['x']],
    ['A cost of $\\$5$ each', ['\\$5']],
    ['It weighs $3 \\text{ kg}$', ['3 \\text{ kg}']],
  ])('are found in %j', (markdown, found) => expect(formulas(markdown)).toEqual(found));

  it.each([
    'It costs $5 and $6', 'from $5 to $10.', '$5-$6', '$1,000 or $2,000', 'between $5 or US$', 'from US$5 to US$6', 'echo $HOME/$USER',
    '`$x$`', '```\n$x$\n```', 'a \\$x$ b', 'open $x', 'open \\(x', '$ x $', '$$', '$$ $$', 'a $5 and\n\n$6 b', '$x\n\ny$',
  ])('are not found in %j', (markdown) => expect(formulas(markdown)).toEqual([]));

  it('leave the text of prices as it is', () => {
    expect(html('It costs $5 and $6')).toContain('It costs $5 and $6');
  });

  it('keep emphasis around them and take none from within', () => {
    expect(formulas('**bold $a*b*c$ text** and $d_1 e_1$')).toEqual(['a*b*c', 'd_1 e_1']);
    expect(html('a $x*y$ b', true)).not.toContain('*</');
  });

  it('appear when they are closed, and not before', () => {
    expect(formulas('It is $x^2', true)).toEqual([]);
    expect(formulas('It is $x^2$ ', true)).toEqual(['x^2']);
    expect(html('$$\na_1 * b_1', true)).toBe('<p class="formula-source">$$\na_1 * b_1</p>');
  });

  it('are told from what is only begun', () => {
    expect([isOpenDisplay('$$\nx'), isOpenDisplay('$$x$$'), isOpenDisplay('\\[ x'), isOpenDisplay('text')]).toEqual([true, false, true, false]);
    expect(withoutFormulas('a $x*y$ b \\(z*\\) $5 c')).toBe('a  b  $5 c');
  });
});

describe('diagrams', () => {
  const fence = '```mermaid\ngraph TD\n  A-->B\n```\n';
  it('get a place when their fence is closed', () => {
    expect(html(fence.slice(0, -5), true)).not.toContain('diagram');
    expect(html(fence, true)).toContain('class="diagram-view"');
    expect(html(fence)).toContain('data-act="source"');
  });
  it('hold no HTML when they are drawn', () => {
    expect(withoutHtml('A["<img src=x onerror=y>"]-->B<br/>\nC <|-- D\n<<interface>> E\n<<img src=x>>')).toBe(
      'A["#lt;img src=x onerror=y>"]-->B<br/>\nC <|-- D\n<<interface>> E\n<#lt;img src=x>>');
  });
  it('are left as source where the page does not draw them', () => {
    expect(html('```mermaid\nmindmap\n  a\n```')).not.toContain('diagram');
    expect(html('```python\ngraph TD\n```')).not.toContain('diagram');
  });
});
