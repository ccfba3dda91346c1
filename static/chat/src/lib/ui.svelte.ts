/** What is open on the page: drawer, panel, dialogs. */
import { MediaQuery } from 'svelte/reactivity';

export type DialogName = 'search' | 'shortcuts' | 'settings';

class Ui {
  dialog = $state<DialogName | null>(null);
  /** The sidebar as a drawer, on a narrow page. */
  drawer = $state(false);
  live = $state(false);
  /** The sidebar becomes a drawer and the live panel a sheet. */
  readonly narrow = new MediaQuery('(max-width: 819px)');

  get isNarrow(): boolean {
    return this.narrow.current;
  }
}

export const ui = new Ui();
