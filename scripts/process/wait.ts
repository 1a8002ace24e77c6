/** Waits for a condition by polling it. */
import { setTimeout as delay } from "node:timers/promises";

interface Limits {
  readonly millisecondsMax: number;
  readonly stepMilliseconds: number;
}

/**
 * Polls `look` until it returns a value other than undefined or false.
 * @returns what `look` returned; undefined when the time is over
 */
export async function waitFor<T>(
  look: () => Promise<T | undefined | false> | T | undefined | false,
  { millisecondsMax, stepMilliseconds }: Limits,
): Promise<T | undefined> {
  const until = performance.now() + millisecondsMax;
  for (;;) {
    const seen = await look();
    if (seen !== undefined && seen !== false) return seen;
    if (performance.now() > until) return undefined;
    await delay(stepMilliseconds);
  }
}
