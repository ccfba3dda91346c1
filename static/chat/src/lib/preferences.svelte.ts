/** What a person set for this browser: the look and the keys. Kept in localStorage, told to no server. */
import { load, store } from './storage';

export type Theme = 'system' | 'light' | 'dark';

interface Kept {
  theme: Theme;
  /** Enter sends and Shift+Enter breaks the line; false swaps the two. */
  enterSends: boolean;
  /** What Enter does with a message while a run goes on; Mod+Enter does the other. */
  whileBusy: 'queue' | 'steer';
  shortcuts: boolean;
  sidebar: boolean;
  wrapCode: boolean;
  /** Models, by their full names, in the order in which they were marked. */
  favourites: string[];
}

const DEFAULTS: Kept = {
  theme: 'system',
  enterSends: true,
  whileBusy: 'queue',
  shortcuts: true,
  sidebar: true,
  wrapCode: false,
  favourites: [],
};

class Preferences {
  #kept = $state<Kept>({ ...DEFAULTS, ...load<Partial<Kept>>('preferences', {}) });

  get theme() { return this.#kept.theme; }
  set theme(theme: Theme) {
    this.#set({ theme });
    if (theme === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  get enterSends() { return this.#kept.enterSends; }
  set enterSends(enterSends: boolean) { this.#set({ enterSends }); }

  get whileBusy() { return this.#kept.whileBusy; }
  set whileBusy(whileBusy: 'queue' | 'steer') { this.#set({ whileBusy }); }

  get shortcuts() { return this.#kept.shortcuts; }
  set shortcuts(shortcuts: boolean) { this.#set({ shortcuts }); }

  get sidebar() { return this.#kept.sidebar; }
  set sidebar(sidebar: boolean) { this.#set({ sidebar }); }

  get wrapCode() { return this.#kept.wrapCode; }
  set wrapCode(wrapCode: boolean) { this.#set({ wrapCode }); }

  get favourites(): readonly string[] { return this.#kept.favourites; }

  toggleFavourite(model: string) {
    const others = this.#kept.favourites.filter((one) => one !== model);
    this.#set({ favourites: others.length < this.#kept.favourites.length ? others : [...others, model] });
  }

  #set(some: Partial<Kept>) {
    Object.assign(this.#kept, some);
    store('preferences', this.#kept);
  }
}

export const preferences = new Preferences();
