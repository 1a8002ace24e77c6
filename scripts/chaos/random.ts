/** Random numbers that a seed repeats. */

export interface Random {
  /** Returns a number from 0 (included) to 1 (excluded). */
  next(): number;
  /** Returns a whole number from `min` to `max`, both included. */
  between(min: number, max: number): number;
  /** Returns one element. @throws {RangeError} when the list is empty */
  pick<T>(list: readonly T[]): T;
  /** Returns an independent generator, so that one client's choices do not depend on the speed of another. */
  fork(name: string): Random;
}

/** Returns a generator (mulberry32) for a seed, a whole number of at most 32 bits. */
export function randomFrom(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const between = (min: number, max: number) => min + Math.floor(next() * (max - min + 1));
  return {
    next,
    between,
    pick(list) {
      const [first, ...rest] = list;
      if (first === undefined) throw new RangeError("The list is empty.");
      return rest[between(-1, rest.length - 1)] ?? first;
    },
    fork(name) {
      let hash = seed >>> 0;
      for (const character of name) hash = (Math.imul(hash, 31) + (character.codePointAt(0) ?? 0)) >>> 0;
      return randomFrom(hash);
    },
  };
}
