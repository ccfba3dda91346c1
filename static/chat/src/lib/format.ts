/** Numbers, times and names as people read them. Pure. */

export function formatElapsed(ms: number): string {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 0.95) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Time that still runs: whole seconds, so that it does not flicker. */
export function formatTicking(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const minutes = Math.floor(seconds / 60);
  if (minutes === 0) return `${seconds} s`;
  if (minutes < 60) return `${minutes}:${String(seconds % 60).padStart(2, '0')} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 24 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A number of tokens: `812`, `12.3k`, `128k`, `1.05M`. */
export function formatCount(n: number): string {
  if (n < 10_000) return String(Number(n.toFixed(1)));
  const [size, unit] = n < 999_500 ? [n / 1000, 'k'] : [n / 1e6, 'M'];
  return `${Number(size.toPrecision(3))}${unit}`;
}

export function formatSize(bytes: number): string {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${Math.round(bytes / 1000)} kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

export function formatCost(usd: number): string {
  if (usd === 0) return '$0';
  if (usd < 1e-6) return '<$0.000001';
  return `$${usd < 0.01 ? Number(usd.toPrecision(2)) : usd.toFixed(2)}`;
}

/** The group under which a conversation of that time stands in the sidebar. */
export function dayGroup(ts: number | undefined, now: number): string {
  if (!ts) return 'Conversations';
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  if (ts >= midnight) return 'Today';
  if (ts >= midnight - DAY_MS) return 'Yesterday';
  if (ts >= midnight - 7 * DAY_MS) return 'Last 7 days';
  if (ts >= midnight - 30 * DAY_MS) return 'Last 30 days';
  return new Date(ts).toLocaleDateString(undefined, { month: 'long', year: 'numeric' });
}

const DAY_MS = 86_400_000;

/** `send_mail` and `mail.send` as words. */
export function wordsOf(name: string): string {
  const words = name.replace(/^[\w-]+__/, '').replace(/[._-]+/g, ' ').replace(/([a-z])([A-Z])/g, '$1 $2').trim().toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** A value of JSON as it is shown: a text as it is, all else indented. */
export function pretty(value: unknown): string {
  if (value === undefined || value === null) return '';
  if (typeof value === 'string') return value;
  return JSON.stringify(value, null, 2);
}

/** A tool's result as text where it is text, else as JSON. */
export function resultText(result: unknown): string {
  const content = Array.isArray(result) ? result : (result as { content?: unknown } | null)?.content;
  if (Array.isArray(content) && content.length && content.every((c) => typeof c?.text === 'string')) {
    return content.map((c) => tidyJson(c.text as string)).join('\n');
  }
  return typeof result === 'string' ? tidyJson(result) : pretty(result);
}

function tidyJson(text: string): string {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
