import { mkdtemp, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { expect, it } from "vitest";
import { ROOT } from "../project/paths.ts";
import { isUnchanged, stampsOf } from "./bundles.ts";

it("an input counts as changed after an edit, and after an edit that came while it was read", async () => {
  const folder = await mkdtemp(join(tmpdir(), "lotus-inputs-"));
  const path = join(folder, "input.ts");
  const input = relative(ROOT, path);
  const began = Date.now();
  const at = (milliseconds: number) => utimes(path, new Date(milliseconds), new Date(milliseconds));
  try {
    await writeFile(path, "1");
    await at(began - 1_000);
    const before = stampsOf([input], began);
    expect(isUnchanged(before)).toBe(true);
    await at(began - 500);
    expect(isUnchanged(before)).toBe(false);
    await at(began + 1);
    expect(isUnchanged(stampsOf([input], began))).toBe(false);
  } finally {
    await rm(folder, { recursive: true });
  }
});
