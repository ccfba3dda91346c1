/** The code highlighter, fetched when the first code block wants it; until then code is plain. */
import type { HLJSApi } from 'highlight.js';

class Highlighter {
  /** Grows when highlighting becomes possible; who renders code reads it, to render again. */
  version = $state(0);
  api: HLJSApi | null = null;
  #loading = false;

  load() {
    if (this.#loading) return;
    this.#loading = true;
    import('./languages').then(
      ({ hljs }) => {
        this.api = hljs;
        this.version += 1;
      },
      () => {
        this.#loading = false; // offline at the wrong moment: the next block asks again
      },
    );
  }
}

export const highlighter = new Highlighter();

/** Highlighted HTML, or null where the language is unknown or the highlighter has not come yet. */
export function highlight(code: string, lang: string): string | null {
  if (!lang) return null;
  highlighter.load();
  const api = highlighter.api;
  if (!api || !api.getLanguage(lang)) return null;
  return api.highlight(code, { language: lang, ignoreIllegals: true }).value;
}
