/** Where the page is: `#/c/<conv>`, or `#/` for a new chat. A link may fill the composer (`#/?text=…`), never send. */

export interface Route {
  conv: string | null;
  text: string | null;
}

export function parseHash(hash: string): Route {
  const [path = '', query = ''] = hash.replace(/^#/, '').split('?', 2);
  const conv = /^\/c\/([^/]+)$/.exec(path)?.[1];
  return { conv: conv ? decode(conv) : null, text: new URLSearchParams(query).get('text') };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

class Router {
  conv = $state<string | null>(null);
  /** A text that a link brought for the composer, until the composer took it. */
  text = $state<string | null>(null);

  constructor() {
    this.#read();
    window.addEventListener('hashchange', () => this.#read());
  }

  go(conv: string | null, { replace = false } = {}) {
    const hash = conv === null ? '#/' : `#/c/${encodeURIComponent(conv)}`;
    if (replace) {
      history.replaceState(null, '', hash);
      this.#read();
    } else if (location.hash !== hash) {
      location.hash = hash;
      this.#read();
    }
  }

  #read() {
    const route = parseHash(location.hash);
    this.conv = route.conv;
    if (route.text !== null) {
      this.text = route.text;
      history.replaceState(null, '', location.hash.split('?')[0] || '#/');
    }
  }
}

export const router = new Router();
