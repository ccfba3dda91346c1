import { describe, expect, it } from 'vitest';
import { enterAction, shortcutOf, type EnterRules, type KeyPress } from '../src/lib/keys';

function press(key: string, some: Partial<KeyPress> = {}): KeyPress {
  return { key, code: '', ctrlKey: false, metaKey: false, shiftKey: false, altKey: false, ...some };
}

const idle: EnterRules = { enterSends: true, busy: false, whileBusy: 'queue' };
const busy: EnterRules = { ...idle, busy: true };

describe('Enter in the composer', () => {
  it.each<[string, Partial<KeyPress>, EnterRules, string]>([
    ['sends', {}, idle, 'queue'],
    ['with Shift breaks the line', { shiftKey: true }, idle, 'newline'],
    ['with Mod sends', { ctrlKey: true }, idle, 'queue'],
    ['with Mod and Shift sends where nothing can be interrupted', { metaKey: true, shiftKey: true }, idle, 'queue'],
    ['queues while a run goes on', {}, busy, 'queue'],
    ['with Mod steers then', { ctrlKey: true }, busy, 'steer'],
    ['with Mod and Shift interrupts then', { ctrlKey: true, shiftKey: true }, busy, 'interrupt'],
    ['steers where that is the setting', {}, { ...busy, whileBusy: 'steer' }, 'steer'],
    ['with Mod queues where steering is the setting', { metaKey: true }, { ...busy, whileBusy: 'steer' }, 'queue'],
    ['breaks the line where that is the setting', {}, { ...idle, enterSends: false }, 'newline'],
    ['with Shift sends where Enter breaks the line', { shiftKey: true }, { ...idle, enterSends: false }, 'queue'],
    ['belongs to the input method while it composes', { isComposing: true }, idle, 'none'],
    ['belongs to the input method in browsers that tell it by key code alone', { keyCode: 229 }, idle, 'none'],
    ['with Alt is left alone', { altKey: true }, idle, 'none'],
  ])('%s', (_, some, rules, action) => {
    expect(enterAction(press('Enter', some), rules)).toBe(action);
  });

  it('is the only key that sends', () => {
    expect(enterAction(press('a'), idle)).toBe('none');
  });
});

describe('shortcuts', () => {
  it.each<[Partial<KeyPress> & { key: string }, string | null]>([
    [{ key: 'O', ctrlKey: true, shiftKey: true }, 'new-chat'],
    [{ key: 'k', metaKey: true }, 'search'],
    [{ key: 'S', metaKey: true, shiftKey: true }, 'sidebar'],
    [{ key: 'C', ctrlKey: true, shiftKey: true }, 'copy-reply'],
    [{ key: 'M', ctrlKey: true, shiftKey: true }, 'model'],
    [{ key: 'c', ctrlKey: true }, null],
    [{ key: 'Escape' }, 'escape'],
    [{ key: 'Escape', shiftKey: true }, 'focus-composer'],
    [{ key: 'Escape', isComposing: true }, null],
    [{ key: 'o' }, null],
  ])('%o is %s', (some, shortcut) => {
    expect(shortcutOf(press(some.key, some))).toBe(shortcut);
  });

  it('goes by the physical key for punctuation, whatever the layout writes', () => {
    expect(shortcutOf(press('-', { code: 'Slash', ctrlKey: true }))).toBe('shortcuts');
    expect(shortcutOf(press(':', { code: 'Period', metaKey: true }))).toBe('live-settings');
  });
});
