/**
 * Draws the diagrams of a rendered block, each into a shadow root of its own, so that neither style nor script of a
 * diagram reaches the page. Mermaid is fetched when the first diagram comes into view.
 */
import DOMPurify from 'dompurify';
import { MediaQuery } from 'svelte/reactivity';
import { preferences } from '../preferences.svelte';

/** Too big for what they are; the build leaves them out (`vite.config.ts`), and their source is shown. */
const LEFT_OUT = /^(?:mindmap|architecture|swimlane)/;
const MAX_CHARS = 20_000;

type Drawer = (source: string, scheme: 'light' | 'dark') => Promise<string>;

class Diagrams {
  readonly #prefersDark = new MediaQuery('(prefers-color-scheme: dark)');
  #drawer: Promise<Drawer> | null = null;

  get scheme(): 'light' | 'dark' {
    return preferences.theme === 'system' ? (this.#prefersDark.current ? 'dark' : 'light') : preferences.theme;
  }

  async draw(source: string, scheme: 'light' | 'dark'): Promise<string> {
    this.#drawer ??= import('./mermaid').then(({ draw }) => draw);
    try {
      return await (await this.#drawer)(source, scheme);
    } catch (error) {
      if (error instanceof TypeError) this.#drawer = null; // the chunk did not come: the next diagram asks again
      throw error;
    }
  }
}

export const diagrams = new Diagrams();

/** Whether a closed fence of this language and content is drawn. */
export function isDiagram(lang: string, code: string): boolean {
  const first = code.replace(/^---\n[\s\S]*?\n---\n/, '').replace(/^\s*%%.*$/gm, '').trimStart();
  return lang === 'mermaid' && first !== '' && code.length <= MAX_CHARS && !LEFT_OUT.test(first);
}

/**
 * The source without HTML: labels go through a `div` of the page while mermaid measures them, and what is sanitised is
 * the result alone. Line breaks and stereotypes such as `<<interface>>` are mermaid's own.
 */
export function withoutHtml(source: string): string {
  return source.replace(/<<[\w -]+>>|<br\s*\/?>|<(?=[a-z/!?])/gi, (match) => (match === '<' ? '#lt;' : match));
}

const drawn = new WeakMap<Element, string>();

/** Draw what a block holds, when it comes into view. Answers how to stop waiting for that. */
export function drawDiagrams(block: HTMLElement, scheme: 'light' | 'dark'): (() => void) | undefined {
  const figures = block.querySelectorAll<HTMLElement>('.diagram');
  if (figures.length === 0) return undefined;
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      void show(entry.target as HTMLElement, scheme);
    }
  }, { rootMargin: '200px' });
  for (const figure of figures) observer.observe(figure);
  return () => observer.disconnect();
}

async function show(figure: HTMLElement, scheme: 'light' | 'dark') {
  const view = figure.querySelector<HTMLElement>('.diagram-view');
  const source = figure.querySelector('code')?.textContent ?? '';
  const wanted = `${scheme} ${source}`;
  if (!view || drawn.get(view) === wanted) return;
  drawn.set(view, wanted);
  const root = view.shadowRoot ?? view.attachShadow({ mode: 'open' });
  try {
    const svg = await diagrams.draw(withoutHtml(source), scheme);
    if (drawn.get(view) !== wanted) return;
    const clean = DOMPurify.sanitize(svg, {
      USE_PROFILES: { svg: true, svgFilters: true }, ADD_TAGS: ['style'], FORBID_TAGS: ['a', 'image', 'foreignObject'], RETURN_DOM_FRAGMENT: true,
    });
    const own = document.createElement('style');
    own.textContent = ':host { display: block } svg { display: block; max-width: 100%; height: auto; margin-inline: auto }';
    root.replaceChildren(own, clean);
    view.dataset.state = 'drawn';
  } catch {
    if (drawn.get(view) !== wanted) return;
    drawn.delete(view);
    root.replaceChildren();
    view.dataset.state = 'failed';
  }
}
