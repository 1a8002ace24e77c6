import { readFile } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { bundleOf } from "../build/bundles.ts";
import { findFunctions } from "../project/functions.ts";
import { mapPositions } from "./source-maps.ts";

/** Returns the position of a text in the file, as a stack names it. */
async function positionIn(file: string, text: string): Promise<string> {
  const before = (await readFile(file, "utf8")).split(text)[0]?.split("\n") ?? [];
  return `${file}:${before.length}:${(before.at(-1)?.length ?? 0) + 1}`;
}

describe("a position in a bundle", () => {
  it("becomes the position in the source file", async () => {
    const pay = (await findFunctions()).find(({ name }) => name === "order-pay");
    const summary = pay?.kind === "endpoint" ? pay.description.summary : "";
    const position = await positionIn(bundleOf("order-pay"), summary);
    const source = (await readFile("functions/order/pay.ts", "utf8")).split("\n");
    const mapped = mapPositions(`{"stack":"Error: x\\n    at handle (${position})"}`);
    const [, line = "0"] = /at handle \(functions\/order\/pay\.ts:(\d+):\d+\)"\}$/.exec(mapped) ?? [];
    expect(source[Number(line) - 1]).toContain(summary);
  });

  it("stays unchanged for an unknown bundle", () => {
    const text = "at x (/a/dist/no-such.bundle.cjs:1:2)";
    expect(mapPositions(text)).toBe(text);
  });
});
