/**
 * npm run bench: measures Lotus beside a floor and a conventional implementation, in one run, and prints one table.
 *   npm run bench                        all rows, in less than 15 minutes
 *   npm run bench pay                    one row
 *   npm run bench pay -- --rounds 9 --seconds 3 --node 20
 */
import { execFileSync } from "node:child_process";
import { readdir, writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { join } from "node:path";
import { runCommand, UsageError } from "../cli/command.ts";
import { table } from "../cli/output.ts";
import { type BenchOptions, readFlags } from "./flags.ts";
import { type Figure, report } from "./report.ts";

/** A file of this folder that measures. */
interface Bench {
  /** One line: the figures, and what they stand beside. */
  readonly about: string;
  readonly default: (options: BenchOptions) => Promise<Figure[]>;
}

async function findBenches(): Promise<Map<string, Bench>> {
  const found = new Map<string, Bench>();
  for (const file of (await readdir(import.meta.dirname)).sort()) {
    if (!/^[a-z-]+\.ts$/.test(file) || file === "run.ts") continue;
    const module = (await import(join(import.meta.dirname, file))) as Partial<Bench>;
    if (module.about !== undefined && module.default !== undefined) found.set(file.slice(0, -3), module as Bench);
  }
  return found;
}

function describeMachine({ node }: BenchOptions): string {
  const [cpu] = cpus();
  const version = execFileSync(node, ["--version"], { encoding: "utf8" }).trim();
  return `${cpus().length} × ${cpu?.model.trim()}, Node ${version}, ${new Date().toISOString().slice(0, 10)}`;
}

runCommand(async () => {
  const [first, ...rest] = process.argv.slice(2);
  const name = first?.startsWith("-") === false ? first : undefined;
  const benches = await findBenches();
  if (name !== undefined && !benches.has(name)) {
    const list = table([["npm run bench …", ""], ...[...benches].map(([bench, { about }]) => [bench, about])]);
    throw new UsageError(`There is no row "${name}".\n${list}`);
  }
  const options = readFlags(name === undefined ? process.argv.slice(2) : rest);
  const figures: Figure[] = [];
  const began = performance.now();
  for (const [bench, { about, default: run }] of benches) {
    if (name !== undefined && name !== bench) continue;
    const started = performance.now();
    process.stderr.write(`${bench}: ${about}\n`);
    figures.push(...(await run(options)));
    process.stderr.write(`  ${((performance.now() - started) / 1_000).toFixed(0)} s\n`);
  }
  report(figures);
  const minutes = ((performance.now() - began) / 60_000).toFixed(1);
  console.log(`\n${describeMachine(options)}, ${options.rounds} rounds, ${minutes} minutes`);
  if (process.env.BENCH_JSON !== undefined) await writeFile(process.env.BENCH_JSON, JSON.stringify(figures));
});
