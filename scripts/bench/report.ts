/** The table that a bench prints. */
import { table } from "../cli/output.ts";
import { median, ratios, spread } from "./statistics.ts";

export interface Comparison {
  readonly what: string;
  /** Measured in turns: the n-th of one stands beside the n-th of the other. */
  readonly lotus: readonly number[];
  readonly floor: readonly number[];
  /** The target, if there is one: of the ratio, or of Lotus by itself. */
  readonly ratioMin?: number;
  readonly ratioMax?: number;
  readonly lotusMax?: number;
}

function verdict({ lotus, floor, ratioMin, ratioMax, lotusMax }: Comparison): [target: string, reached: string] {
  const ratio = median(ratios(lotus, floor));
  const say = (reached: boolean) => (reached ? "reached" : "not reached");
  if (ratioMin !== undefined) return [`ratio ≥ ${ratioMin}`, say(ratio >= ratioMin)];
  if (ratioMax !== undefined) return [`ratio ≤ ${ratioMax}`, say(ratio <= ratioMax)];
  if (lotusMax !== undefined) return [`≤ ${lotusMax}`, say(median(lotus) <= lotusMax)];
  return ["", ""];
}

/** Prints what was measured: medians with the least and the most, and the ratio, taken pair by pair. */
export function report(
  comparisons: readonly Comparison[],
  heads: readonly [string, string] = ["Lotus", "floor"],
): void {
  const rows = comparisons.map((comparison) => {
    const { what, lotus, floor } = comparison;
    return [what, spread(lotus, 0), spread(floor, 0), spread(ratios(lotus, floor), 2), ...verdict(comparison)];
  });
  console.log(table([["", ...heads, "ratio", "target", ""], ...rows]));
}
