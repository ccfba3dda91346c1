/** The text in the composer, as the draft of the conversation that is open; written behind the typing. */
import { joinDraft, readDraft, writeDraft } from './drafts';

const WRITE_MS = 200;

class Composer {
  text = $state('');
  /** Grows when the composer should take the focus. */
  focusWanted = $state(0);
  #conv: string | null = null;
  #timer: ReturnType<typeof setTimeout> | null = null;

  constructor() {
    this.text = readDraft(null);
    window.addEventListener('pagehide', () => this.flush());
    document.addEventListener('visibilitychange', () => this.flush());
  }

  /** Show the draft of another conversation. */
  open(conv: string | null) {
    if (conv === this.#conv) return;
    this.flush();
    this.#conv = conv;
    this.text = readDraft(conv);
  }

  set(text: string) {
    this.text = text;
    this.#timer ??= setTimeout(() => this.flush(), WRITE_MS);
  }

  clear() {
    this.text = '';
    this.flush();
  }

  focus() {
    this.focusWanted += 1;
  }

  /** A chat that was new has its name now: what was typed since goes with it. */
  adopt(conv: string) {
    if (this.#conv !== null) return;
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    writeDraft(null, '');
    this.#conv = conv;
    writeDraft(conv, this.text);
  }

  /** A text that could not be sent, or that is to be changed: it is never lost. */
  putBack(conv: string | null, text: string) {
    if (conv === this.#conv) {
      this.set(joinDraft(this.text, text));
      this.flush();
      this.focus();
    } else {
      writeDraft(conv, joinDraft(readDraft(conv), text));
    }
  }

  flush() {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    writeDraft(this.#conv, this.text);
  }
}

export const composer = new Composer();
