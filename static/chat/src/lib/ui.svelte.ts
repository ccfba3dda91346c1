/** What is open on the page: drawer, panel, dialogs. */
import { MediaQuery } from 'svelte/reactivity';
import { preferences } from './preferences.svelte';
import type { OfferedPrompt, Resource } from './prompts';

export type DialogName = 'search' | 'shortcuts' | 'settings' | 'usage' | 'connectors';

/** What the model picker is open for. */
export interface Picking {
  title: string;
  /** What choosing does. */
  note: string;
  /** The model that is chosen now. */
  current: string | null;
  /** Models that are not offered. */
  without?: readonly string[];
  onpick: (model: string) => void;
}

/** A prompt or a resource whose gaps are to be filled in. */
export type Filling = { kind: 'prompt'; prompt: OfferedPrompt } | { kind: 'resource'; resource: Resource };

class Ui {
  dialog = $state<DialogName | null>(null);
  /** The sidebar as a drawer, on a narrow page. */
  drawer = $state(false);
  live = $state(false);
  /** Whose settings the live panel shows: a bot's, or null for those of the whole. */
  bot = $state<string | null>(null);
  /** The run whose timeline is shown. */
  timeline = $state<string | null>(null);
  picking = $state.raw<Picking | null>(null);
  filling = $state.raw<Filling | null>(null);
  readonly #narrow = new MediaQuery('(max-width: 819px)');
  readonly #medium = new MediaQuery('(max-width: 1099px)');

  /** The sidebar becomes a drawer and the live panel a sheet. */
  get isNarrow(): boolean {
    return this.#narrow.current;
  }

  /** There is room for one panel beside the conversation; the live panel takes it from the sidebar. */
  get #isSidebarDrawer(): boolean {
    return this.isNarrow || (this.#medium.current && this.live);
  }

  get isSidebarBeside(): boolean {
    return preferences.sidebar && !this.#isSidebarDrawer;
  }

  toggleSidebar() {
    if (this.#isSidebarDrawer) this.drawer = !this.drawer;
    else preferences.sidebar = !preferences.sidebar;
  }
}

export const ui = new Ui();
