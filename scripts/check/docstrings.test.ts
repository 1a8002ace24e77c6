import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ROOT } from "../project/paths.ts";

const KERNEL = "functions/kernel";
const EXPORT = /^export (?!(?:type )?\{|\*)(?:default )?(?:abstract |async )*(?:declare )?\w+ (?<name>\w+)/;
const SUPPRESSION = /^\/\/ biome-ignore /;

/** Returns the exports of a formatted source without a docstring directly above. The first overload documents all. */
function undocumented(source: string): string[] {
  const lines = source.split("\n");
  const documented = new Set<string>();
  return lines.flatMap((line, index) => {
    const name = EXPORT.exec(line)?.groups?.name;
    if (name === undefined) return [];
    let above = index - 1;
    while (SUPPRESSION.test(lines[above] ?? "")) above--;
    const end = lines[above] ?? "";
    if (/^(?:\/\*\*.*| )\*\/$/.test(end)) documented.add(name);
    return documented.has(name) ? [] : [`${index + 1}: ${name}`];
  });
}

describe("the exports of the kernel", () => {
  const files = readdirSync(join(ROOT, KERNEL)).filter((file) => file.endsWith(".ts") && !file.endsWith(".test.ts"));

  it.each(files)("%s: each has a docstring", (file) => {
    expect(undocumented(readFileSync(join(ROOT, KERNEL, file), "utf8"))).toEqual([]);
  });
});

describe("undocumented", () => {
  it.each([
    ["a constant", "export const LIMIT = 1;", ["1: LIMIT"]],
    ["a function", "export async function run(): Promise<void> {", ["1: run"]],
    ["a generic interface", "export interface Endpoint<", ["1: Endpoint"]],
    ["a line comment instead of a docstring", "// A limit.\nexport const LIMIT = 1;", ["2: LIMIT"]],
    ["a plain block comment", "/* A limit. */\nexport const LIMIT = 1;", ["2: LIMIT"]],
    ["an export below a documented one", "/** A. */\nexport const A = 1;\nexport const B = 1;", ["3: B"]],
    ["a docstring", "/** A limit. */\nexport const LIMIT = 1;", []],
    ["a docstring of several lines", "/**\n * Runs.\n */\nexport function run() {", []],
    ["a suppression between them", "/** Any. */\n// biome-ignore lint/x: y\nexport type Any = any;", []],
    ["overloads", "/** Makes. */\nexport function make(a: 1): 1;\nexport function make(a: 2): 2;", []],
    ["a list of names", "export { LIMIT };\nexport type { A } from './a.ts';", []],
  ])("%s", (_, source, found) => {
    expect(undocumented(source)).toEqual(found);
  });
});
