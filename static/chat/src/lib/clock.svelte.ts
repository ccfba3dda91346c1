/** The time, for what counts up or down on the page. It ticks only while somebody looks. */
import { createSubscriber } from 'svelte/reactivity';

const TICK_MS = 500;

const subscribe = createSubscriber((update) => {
  const timer = setInterval(update, TICK_MS);
  return () => clearInterval(timer);
});

/** Unix milliseconds, anew twice a second for whoever reads it in an effect or a template. */
export function now(): number {
  subscribe();
  return Date.now();
}
