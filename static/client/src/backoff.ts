/**
 * How long to wait before the next connection, and whether there is one (protocol section 8).
 *
 * Pure. `client` counts the attempts and owns the timer.
 */
import type { Bye } from './wire';

/** Full jitter begins with this bound, doubled by each attempt that fails … */
export const FIRST_MS = 500;
/** … up to this one. */
export const LAST_MS = 30_000;

/**
 * Full jitter: uniform between 0 and the bound of this attempt (0 is the first).
 *
 * @param random Uniform in [0, 1).
 */
export function jitter(attempt: number, random: number): number {
  return random * Math.min(LAST_MS, FIRST_MS * 2 ** attempt);
}

/**
 * Says whether a client comes back after a close.
 *
 * The bands of protocol section 8 decide: 4500–4999 do not, everything else does. A `bye` that came before speaks too,
 * since the close itself may be seen as 1006 only.
 */
export function comesBack(code: number, bye: Bye | null): boolean {
  const isFinal = (value: number | undefined) => value !== undefined && value >= 4500 && value <= 4999;
  return !isFinal(code) && !isFinal(bye?.code) && bye?.reconnect !== false;
}
