/**
 * npm run bench: measures Lotus against floors that are measured beside it, in the same run.
 *   npm run bench                       lists what can be measured
 *   npm run bench pay                   one of them; what follows its name is its own: npm run bench pay -- --rounds 9
 *   npm run bench all                   one after the other
 */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { runCommand, UsageError } from "../cli/command.ts";
import { table } from "../cli/output.ts";

/** A file of this folder that can be run. */
interface Bench {
  /** One line: what is measured, against what, and the target. */
  readonly about: string;
  /** Measures, and prints the figures. Rejects with a sentence for arguments that are not known. */
  default(args: readonly string[]): Promise<void>;
}

async function benches(): Promise<Map<string, Bench>> {
  const found = new Map<string, Bench>();
  for (const file of (await readdir(import.meta.dirname)).sort()) {
    if (!/^[a-z-]+\.ts$/.test(file) || file === "run.ts") continue;
    const module = (await import(join(import.meta.dirname, file))) as Partial<Bench>;
    if (module.about !== undefined && module.default !== undefined) found.set(file.slice(0, -3), module as Bench);
  }
  return found;
}

runCommand(async () => {
  const [name, ...args] = process.argv.slice(2);
  const known = await benches();
  const list = table([["npm run bench …", ""], ...[...known].map(([bench, { about }]) => [bench, about])]);
  if (name === undefined) return console.log(list);
  if (name !== "all" && !known.has(name)) throw new UsageError(`There is no bench "${name}".\n${list}`);
  for (const [bench, { about, default: run }] of known) {
    if (name !== "all" && name !== bench) continue;
    console.log(`\n${bench}: ${about}\n`);
    await run(name === "all" ? [] : args);
  }
});
