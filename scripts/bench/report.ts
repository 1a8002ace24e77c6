/** The table that a bench prints. */
import { table } from "../local/console.ts";
import { median, ratios, spread } from "./statistics.ts";

interface Comparison {
  readonly what: string;
  /** Measured in turns: the n-th of one stands beside the n-th of the other. */
  readonly lotus: readonly number[];
  readonly floor: readonly number[];
  readonly digits?: number;
  /** The target of the ratio: at least, or at most. */
  readonly atLeast?: number;
  readonly atMost?: number;
}

function verdict(ratio: number, { atLeast, atMost }: Comparison): [target: string, reached: string] {
  if (atLeast !== undefined) return [`≥ ${atLeast}`, ratio >= atLeast ? "reached" : "not reached"];
  if (atMost !== undefined) return [`≤ ${atMost}`, ratio <= atMost ? "reached" : "not reached"];
  return ["", ""];
}

/** Prints what was measured: medians with the least and the most, and the ratio, taken pair by pair. */
export function report(comparisons: readonly Comparison[], heads = { lotus: "Lotus", floor: "floor" }): void {
  const rows = comparisons.map((comparison) => {
    const { what, lotus, floor, digits = 0 } = comparison;
    const each = ratios(lotus, floor);
    return [what, spread(lotus, digits), spread(floor, digits), spread(each, 2), ...verdict(median(each), comparison)];
  });
  console.log(table([["", heads.lotus, heads.floor, "ratio", "target", ""], ...rows]));
}
