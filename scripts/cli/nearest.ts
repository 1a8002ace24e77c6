/** Finds the word that a person probably meant. */

const DISTANCE_MAX = 3;

/** Returns the number of insertions, deletions and replacements that turn one word into another. */
function distance(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let i = 1; i <= from.length; i++) {
    const next = [i];
    for (let j = 1; j <= to.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (from[i - 1] === to[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[to.length] ?? 0;
}

/** Returns the candidate nearest to a word; undefined when no candidate is similar. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const started = candidates.filter((candidate) => word.length > 2 && candidate.startsWith(word));
  if (started[0] !== undefined) return started[0];
  const rated = candidates.map((candidate) => ({ candidate, far: distance(word, candidate) }));
  const [best] = rated.sort((a, b) => a.far - b.far);
  return best !== undefined && best.far <= Math.min(DISTANCE_MAX, word.length - 1) ? best.candidate : undefined;
}

/** Returns " Did you mean X?" for a similar candidate, else an empty text. */
export function didYouMean(word: string, candidates: readonly string[]): string {
  const found = nearest(word, candidates);
  return found === undefined ? "" : ` Did you mean ${found}?`;
}
