/** Maps the positions of a stack in a bundle to the source files. */
import { readFileSync, statSync } from "node:fs";
import Module, { SourceMap } from "node:module";
import { relative, resolve } from "node:path";
import { bundleOf, DIST } from "../build/bundles.ts";
import { ROOT } from "../project/paths.ts";

/** The start cache wraps a bundle in a function, whose head is in the first line. */
const WRAPPER_COLUMNS = Module.wrap("").indexOf("\n");
const POSITION = /(?:file:\/\/)?(?:[^\s()'"]*[\\/])?dist[\\/]([a-z-]+)\.bundle\.cjs:(\d+)(?::(\d+))?/g;

const maps = new Map<string, { readonly builtAt: number; readonly map: SourceMap }>();

function mapOf(name: string): SourceMap | undefined {
  const file = `${bundleOf(name)}.map`;
  const builtAt = statSync(file, { throwIfNoEntry: false })?.mtimeMs;
  if (builtAt === undefined) return undefined;
  const known = maps.get(name);
  if (known?.builtAt === builtAt) return known.map;
  const map = new SourceMap(JSON.parse(readFileSync(file, "utf8")));
  maps.set(name, { builtAt, map });
  return map;
}

/** Returns text with each position in a bundle replaced by its file, line and column in the checkout. */
export function mapPositions(text: string): string {
  if (!text.includes(".bundle.cjs:")) return text;
  return text.replace(POSITION, (whole, name: string, line: string, column = "1") => {
    const row = Number(line) - 1;
    const found = mapOf(name)?.findEntry(row, Number(column) - 1 - (row === 0 ? WRAPPER_COLUMNS : 0));
    if (found === undefined || !("originalSource" in found)) return whole;
    const file = relative(ROOT, resolve(DIST, found.originalSource));
    return `${file}:${found.originalLine + 1}:${found.originalColumn + 1}`;
  });
}
