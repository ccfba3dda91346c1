/**
 * What a key press means. Pure: no DOM beyond the event's own members, no state.
 *
 * Punctuation goes by the physical key (`code`), letters by what they write (`key`), so that both follow the keyboard
 * layout as people expect.
 */

export type Shortcut =
  | 'new-chat' | 'focus-composer' | 'escape' | 'search' | 'shortcuts' | 'live-settings' | 'sidebar' | 'copy-reply' | 'model';

/** What Enter in the composer does. `when` is the member of `run.start`. */
export type EnterAction = 'newline' | 'queue' | 'steer' | 'interrupt' | 'none';

export type KeyPress = Pick<KeyboardEvent, 'key' | 'code' | 'ctrlKey' | 'metaKey' | 'shiftKey' | 'altKey'> & {
  isComposing?: boolean;
  keyCode?: number;
};

export const isMac = typeof navigator !== 'undefined' && /Mac|iPhone|iPad/.test(navigator.platform);

/** True while an input method writes: such a press belongs to it, Enter too. Safari tells it by keyCode 229 alone. */
export function isComposing(press: KeyPress): boolean {
  return press.isComposing === true || press.keyCode === 229;
}

export function shortcutOf(press: KeyPress): Shortcut | null {
  if (isComposing(press) || press.altKey) return null;
  const mod = press.ctrlKey || press.metaKey;
  if (press.key === 'Escape') return mod ? null : press.shiftKey ? 'focus-composer' : 'escape';
  if (!mod) return null;
  const letter = press.key.toLowerCase();
  if (press.shiftKey) {
    if (letter === 'o') return 'new-chat';
    if (letter === 's') return 'sidebar';
    if (letter === 'c') return 'copy-reply';
    if (letter === 'm') return 'model';
    return null;
  }
  if (letter === 'k') return 'search';
  if (press.code === 'Slash') return 'shortcuts';
  if (press.code === 'Period') return 'live-settings';
  return null;
}

export interface EnterRules {
  enterSends: boolean;
  /** A run is active, so that a message is queued, steers or interrupts. */
  busy: boolean;
  whileBusy: 'queue' | 'steer';
}

/** What a press of Enter in the composer does. */
export function enterAction(press: KeyPress, rules: EnterRules): EnterAction {
  if (press.key !== 'Enter' || isComposing(press) || press.altKey) return 'none';
  const mod = press.ctrlKey || press.metaKey;
  const other = rules.whileBusy === 'queue' ? 'steer' : 'queue';
  if (mod && press.shiftKey) return rules.busy ? 'interrupt' : 'queue';
  if (mod) return rules.busy ? other : 'queue';
  if (press.shiftKey === rules.enterSends) return 'newline';
  return rules.busy ? rules.whileBusy : 'queue';
}

const MOD = isMac ? '⌘' : 'Ctrl';
const SHIFT = isMac ? '⇧' : 'Shift';

/** The keys of a shortcut as they stand on this machine's keyboard. */
export function keyNames(keys: string): string[] {
  return keys.split('+').map((key) => (key === 'Mod' ? MOD : key === 'Shift' ? SHIFT : key));
}

export const SHORTCUTS: { id: Shortcut; keys: string; label: string }[] = [
  { id: 'new-chat', keys: 'Mod+Shift+O', label: 'New chat' },
  { id: 'search', keys: 'Mod+K', label: 'Search conversations' },
  { id: 'focus-composer', keys: 'Shift+Esc', label: 'Go to the message field' },
  { id: 'escape', keys: 'Esc', label: 'Close what is open, or stop the reply' },
  { id: 'model', keys: 'Mod+Shift+M', label: 'Choose a model' },
  { id: 'live-settings', keys: 'Mod+.', label: 'Live settings' },
  { id: 'sidebar', keys: 'Mod+Shift+S', label: 'Show or hide the sidebar' },
  { id: 'copy-reply', keys: 'Mod+Shift+C', label: 'Copy the last reply' },
  { id: 'shortcuts', keys: 'Mod+/', label: 'This list' },
];
