/** The words and the order of an ask's options, and the address that it wants visited. Pure. */

const REFUSALS = new Set(['deny', 'decline', 'cancel', 'no', 'reject']);

const LABELS: Record<string, string> = {
  allow_once: 'Allow once',
  allow_run: 'Allow for this run',
  allow_always: 'Always allow',
  deny: 'Deny',
  accept: 'Accept',
  decline: 'Decline',
  cancel: 'Cancel',
  approve: 'Approve',
  change: 'Change…',
  reject: 'Reject',
};

/** A choice that says no; nothing goes along with it. */
export function isRefusal(option: string): boolean {
  return REFUSALS.has(option);
}

export function optionLabel(kind: string, option: string): string {
  if (option === 'accept' && kind === 'form') return 'Submit';
  if (option === 'accept' && kind === 'url') return 'Done';
  if (option === 'change' && kind === 'form') return 'Change it so';
  if (LABELS[option]) return LABELS[option];
  if (kind === 'choice') return option;
  const words = option.replace(/_/g, ' ');
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** As the hub gave them, the refusals last. A form without options can still be submitted. */
export function orderOptions(kind: string, options: string[]): string[] {
  const given = options.length > 0 ? options : kind === 'choice' ? [] : ['accept', 'decline'];
  return [...given.filter((o) => !isRefusal(o)), ...given.filter(isRefusal)];
}

/** The hub's clock decides about expiry; some slack keeps a wrong clock here from locking a person out. */
export function isAnswerable(leftMs: number | null): boolean {
  return leftMs === null || leftMs > -60_000;
}

export interface UrlParts {
  href: string;
  before: string;
  host: string;
  after: string;
  warning: string;
}

/** An address in pieces, so that its host stands out; null where it is none of the web. */
export function urlParts(given: unknown): UrlParts | null {
  if (typeof given !== 'string' || !URL.canParse(given)) return null;
  const url = new URL(given);
  if (!/^https?:$/.test(url.protocol)) return null;
  const { href, host, hostname, username, password } = url;
  const login = username || password ? `${username}${password ? `:${password}` : ''}@` : '';
  const before = `${url.protocol}//${login}`;
  const isLocal = /^(?:localhost|127(?:\.\d+){3}|\[::1\])$/.test(hostname);
  const warning = login ? 'What stands before the @ is no part of the host.'
    : hostname.split('.').some((label) => label.startsWith('xn--')) ? 'The host has letters that may be taken for others.'
    : url.protocol === 'http:' && !isLocal ? 'What you enter there is not encrypted on its way.'
    : '';
  return { href, before, host, after: href.slice(before.length + host.length), warning };
}
