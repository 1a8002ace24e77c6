/** The table of the benches: figures, their ratios and their targets. */
import { median, ratios, spread } from "./statistics.ts";

/** A figure of Lotus beside the figures of the other sides. Measurements with the same index were made one after the other. */
export interface Figure {
  /** The name of the figure, with its unit. */
  readonly what: string;
  readonly lotus: readonly number[];
  readonly floor?: readonly number[];
  readonly conventional?: readonly number[];
  /** Decimals of the figures. */
  readonly digits?: number;
  readonly targets?: readonly Target[];
}

/** A limit for the ratio to another side, or for the figure of Lotus itself. */
export interface Target {
  readonly of: "floor" | "conventional" | "lotus";
  readonly min?: number;
  readonly max?: number;
}

/** Returns the median that a target limits: the median of the ratios, pair by pair, or of the figure itself. */
export function measured(figure: Figure, { of }: Target): number {
  return median(of === "lotus" ? figure.lotus : ratios(figure.lotus, figure[of] ?? []));
}

export function isReached(figure: Figure, target: Target): boolean {
  const value = measured(figure, target);
  return value >= (target.min ?? -Infinity) && value <= (target.max ?? Infinity);
}

const SIGN = { floor: "÷ floor ", conventional: "÷ conventional ", lotus: "" };

function wordsOf({ of, min, max }: Target): string {
  return `${SIGN[of]}${min === undefined ? `≤ ${max}` : `≥ ${min}`}`;
}

/** Returns a sentence for each target that a figure misses. */
export function missedTargets(figures: readonly Figure[]): string[] {
  return figures.flatMap((figure) =>
    (figure.targets ?? [])
      .filter((target) => !isReached(figure, target))
      .map((target) => {
        const value = measured(figure, target);
        const digits = value < 100 ? 2 : 0;
        return `${figure.what}: ${SIGN[target.of]}${value.toFixed(digits)} is outside the limit ${wordsOf(target)}. Find the cause, or change the limit and give the reason in docs/performance.md.`;
      }),
  );
}

/** Returns the rows of the table: medians with the least and the greatest value. */
export function rowsOf(figures: readonly Figure[]): string[][] {
  const head = ["", "Lotus", "floor", "conventional", "÷ floor", "÷ conventional", "target", "reached"];
  const rows = figures.map((figure) => {
    const { what, lotus, floor, conventional, digits = 0, targets = [] } = figure;
    const side = (values: readonly number[] | undefined) => (values === undefined ? "" : spread(values, digits));
    const ratio = (values: readonly number[] | undefined) =>
      values === undefined ? "" : spread(ratios(lotus, values), 2);
    return [
      what,
      side(lotus),
      side(floor),
      side(conventional),
      ratio(floor),
      ratio(conventional),
      targets.map(wordsOf).join(", "),
      targets.map((target) => (isReached(figure, target) ? "yes" : "no")).join(", "),
    ];
  });
  return [head, ...rows];
}
