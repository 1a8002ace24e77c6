/** lotus bench: measures Lotus beside a floor and a conventional implementation, in one run, and prints one table. */
import { execFileSync } from "node:child_process";
import { readdir, writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { BENCH_OPTIONS, type BenchOptions, readFlags } from "../bench/flags.ts";
import { type Figure, missedTargets, rowsOf } from "../bench/report.ts";
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { didYouMean } from "../cli/nearest.ts";
import { print } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { ROOT } from "../project/paths.ts";

const FOLDER = join(ROOT, "scripts", "bench");

/** A file of scripts/bench that measures. */
interface Bench {
  /** One line: the figures, and their comparison. */
  readonly about: string;
  readonly default: (options: BenchOptions) => Promise<Figure[]>;
}

async function findBenches(): Promise<Map<string, Bench>> {
  const found = new Map<string, Bench>();
  for (const file of (await readdir(FOLDER)).sort()) {
    if (!/^[a-z-]+\.ts$/.test(file)) continue;
    const module = (await import(pathToFileURL(join(FOLDER, file)).href)) as Partial<Bench>;
    if (module.about !== undefined && module.default !== undefined) found.set(file.slice(0, -3), module as Bench);
  }
  return found;
}

function describeMachine({ node }: BenchOptions): string {
  const [cpu] = cpus();
  const version = execFileSync(node, ["--version"], { encoding: "utf8" }).trim();
  return `${cpus().length} × ${cpu?.model.trim()}, Node ${version}, ${new Date().toISOString().slice(0, 10)}`;
}

export default command({
  about: "Measures Lotus beside a floor and a conventional implementation, in one run, and prints one table.",
  usage: "[ROW]",
  notes: "Without a name it measures all rows, in less than 15 minutes. `npm run bench list` lists the rows.",
  options: {
    ...BENCH_OPTIONS,
    check: { type: "boolean", about: "fail, and report each missed target" },
  },
  async run(values, [name, ...more]) {
    const benches = await findBenches();
    const list = table([["npm run bench …", ""], ...[...benches].map(([row, { about }]) => [row, about])]);
    if (name === "list") return print(list);
    if (more.length > 0 || (name !== undefined && !benches.has(name)))
      throw new UsageError(`The row "${name}" does not exist.${didYouMean(name ?? "", [...benches.keys()])}\n${list}`);
    const options = readFlags(values);
    const figures: Figure[] = [];
    const began = performance.now();
    for (const [row, { about, default: measure }] of benches) {
      if (name !== undefined && name !== row) continue;
      const started = performance.now();
      process.stderr.write(`${row}: ${about}\n`);
      figures.push(...(await measure(options)));
      process.stderr.write(`  ${((performance.now() - started) / 1_000).toFixed(0)} s\n`);
    }
    print(table(rowsOf(figures)));
    const minutes = ((performance.now() - began) / 60_000).toFixed(1);
    print(`\n${describeMachine(options)}, ${options.rounds} rounds, ${minutes} minutes`);
    if (process.env.BENCH_JSON !== undefined) await writeFile(process.env.BENCH_JSON, JSON.stringify(figures));
    const missed = values.check ? missedTargets(figures) : [];
    if (missed.length > 0) throw new Error(missed.join("\n"));
  },
});
