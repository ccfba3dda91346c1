/**
 * The session's id and secret, kept over a reload where there is a storage.
 *
 * A storage that is full, forbidden or broken is the same as none: the session then lives as long as the page.
 */

export interface Ticket { session: string; secret: string }

export class SessionStore {
  #ticket: Ticket | null = null;
  readonly #storage: Storage | null;
  readonly #name: string;

  constructor(storage: Storage | null, url: string, client: string) {
    this.#storage = storage;
    this.#name = `sag.session ${url} ${client}`;
  }

  /** The newest ticket, or null where there is none. */
  read(): Ticket | null {
    if (this.#ticket) return this.#ticket;
    try {
      const kept = JSON.parse(this.#storage?.getItem(this.#name) ?? 'null');
      if (typeof kept?.session === 'string' && typeof kept?.secret === 'string') this.#ticket = kept;
    } catch {
      // A value that is not ours or a storage that may not be read: begin a new session.
    }
    return this.#ticket;
  }

  /** Keeps a ticket; to be called before the next frame is sent, for that frame ends the old secret. */
  write(ticket: Ticket): void {
    this.#ticket = ticket;
    try {
      this.#storage?.setItem(this.#name, JSON.stringify(ticket));
    } catch {
      // No room or no right: the ticket in memory serves until the page goes.
    }
  }
}

/** `sessionStorage` of a page, else null; reading it throws where cookies are forbidden. */
export function pageStorage(): Storage | null {
  try {
    return typeof document === 'undefined' ? null : globalThis.sessionStorage;
  } catch {
    return null;
  }
}
