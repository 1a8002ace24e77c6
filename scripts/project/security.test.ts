import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ROOT } from "./paths.ts";

const document = await readFile(join(ROOT, "docs/security.md"), "utf8");
const lines = document.split("\n");
/** The rows of the tables, without their heads. */
const rows = lines.filter((line, n) => /^\| (?!---)/.test(line) && !/^\|-/.test(lines[n + 1] ?? ""));
/** The test files of the checkout by name. */
const files = new Map<string, string[]>();
for (const folder of ["functions", "triggers", "scripts"])
  for (const path of await readdir(join(ROOT, folder), { recursive: true })) {
    const name = path.split(/[\\/]/).at(-1) ?? "";
    if (name.endsWith(".test.ts")) files.set(name, [...(files.get(name) ?? []), `${folder}/${path}`]);
  }

/** Returns the test files that a text names, with or without a folder. */
const namedIn = (text: string) => [...text.matchAll(/`([\w./-]+\.test\.ts)`/g)].map(([, name = ""]) => name);
const find = (named: string) => {
  const candidates = files.get(named.split("/").at(-1) ?? "") ?? [];
  return named.includes("/") ? candidates.filter((path) => path === named) : candidates;
};

describe("docs/security.md", () => {
  it.each([...new Set(namedIn(document))])("names the test file %s, which exists once", (named) => {
    expect(find(named)).toHaveLength(1);
  });

  it("names a test for each attack that is not tried by hand", () => {
    const without = rows.filter(
      (row) => namedIn(row).length === 0 && !/\bthe same (?:test|file)\b|\| by hand \|$/.test(row),
    );
    expect(without).toEqual([]);
  });

  it("quotes titles that the test files contain", async () => {
    const texts = await Promise.all(
      [...new Set(namedIn(document))].flatMap(find).map((path) => readFile(join(ROOT, path), "utf8")),
    );
    const all = texts.join("\n");
    const quoted = rows.flatMap((row) =>
      [...(row.split("|").at(-2) ?? "").matchAll(/"([^"]+)"/g)].map(([, t = ""]) => t),
    );
    const missing = quoted
      .flatMap((title) => title.split("…").map((part) => part.trim()))
      .filter((part) => !all.includes(part));
    expect(missing).toEqual([]);
  });
});
