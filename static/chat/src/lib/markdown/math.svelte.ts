/** Draws formulas with KaTeX, which is fetched when the first formula wants it; until then their source stands there. */
import type katex from 'katex';

class Math_ {
  /** Grows when drawing becomes possible; who renders formulas reads it, to render again. */
  version = $state(0);
  api: typeof katex | null = null;
  #loading = false;

  load() {
    if (this.#loading) return;
    this.#loading = true;
    import('./katex').then(
      ({ katex }) => {
        this.api = katex;
        this.version += 1;
      },
      () => {
        this.#loading = false; // offline at the wrong moment: the next formula asks again
      },
    );
  }
}

export const math = new Math_();

/** Draw the formulas of a fragment that was cleaned already; KaTeX writes safe DOM as long as it is not told to trust. */
export function drawFormulas(fragment: ParentNode) {
  for (const element of fragment.querySelectorAll<HTMLElement>('.formula')) {
    math.load();
    if (!math.api) return;
    math.api.render(element.textContent ?? '', element, {
      displayMode: element.tagName === 'DIV', throwOnError: false, trust: false, strict: 'ignore', maxExpand: 500, maxSize: 30,
      errorColor: 'var(--danger)',
    });
    if (element.tagName === 'DIV') element.tabIndex = 0; // it may be wider than the page, and scrolls then
  }
}
