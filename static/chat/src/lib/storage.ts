/** JSON values in localStorage. A storage that is full, forbidden or broken is the same as an empty one. */

const PREFIX = 'sag.chat.';

export function load<T>(name: string, fallback: T): T {
  try {
    const kept = localStorage.getItem(PREFIX + name);
    return kept === null ? fallback : (JSON.parse(kept) as T);
  } catch {
    return fallback;
  }
}

export function store(name: string, value: unknown): void {
  try {
    if (value === undefined || value === null || value === '') localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Kept for as long as the page lives, by whoever called.
  }
}
