import { describe, expect, it } from "vitest";
import { isReached, measured, missedTargets } from "./report.ts";

const figure = { what: "CPU, µs", lotus: [10, 20, 30], floor: [10, 10, 10], conventional: [5, 5, 5] };

describe("targets", () => {
  it("compare the median of the ratios, pair by pair, or the figure itself", () => {
    expect(measured(figure, { of: "floor" })).toBe(2);
    expect(measured(figure, { of: "conventional" })).toBe(4);
    expect(measured(figure, { of: "lotus" })).toBe(20);
  });

  it("are limits from below or from above", () => {
    expect(isReached(figure, { of: "floor", min: 2 })).toBe(true);
    expect(isReached(figure, { of: "floor", min: 2.1 })).toBe(false);
    expect(isReached(figure, { of: "lotus", max: 20 })).toBe(true);
    expect(isReached(figure, { of: "lotus", max: 19 })).toBe(false);
  });

  it("that are missed are reported with the value and the limit", () => {
    const targets = [
      { of: "floor" as const, max: 1.5 },
      { of: "lotus" as const, max: 20 },
      { of: "conventional" as const, min: 5 },
    ];
    expect(missedTargets([{ ...figure, targets }])).toEqual([
      expect.stringMatching(/^CPU, µs: ÷ floor 2\.00 is outside the limit ÷ floor ≤ 1\.5\. /),
      expect.stringMatching(/^CPU, µs: ÷ conventional 4\.00 is outside the limit ÷ conventional ≥ 5\. /),
    ]);
  });
});
