/** lotus chaos: kills, cuts, freezes and duplicates under load, and proves afterwards that no money and no event is lost. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { FAULTS } from "../chaos/faults.ts";
import { faultRows, htmlReport } from "../chaos/report.ts";
import { runChaos } from "../chaos/run.ts";
import { command } from "../cli/command.ts";
import { EXIT_CODES, UsageError } from "../cli/errors.ts";
import { print } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { onStopSignal } from "../process/signals.ts";

const MINUTES = 3;
const CLIENTS = 8;
const VIOLATIONS_SHOWN_MAX = 10;

function positive(name: string, text: string, max: number): number {
  const number = Number(text);
  if (!/^\d+(?:\.\d+)?$/.test(text) || number <= 0 || number > max)
    throw new UsageError(`--${name} must be a number above 0 and at most ${max}; ${text} is not.`);
  return number;
}

const number = (about: string, preset: string) => ({ type: "string", value: "N", about, default: preset }) as const;

export default command({
  about: "Kills, cuts, freezes and duplicates under load, and proves afterwards that no money and no event is lost.",
  notes: `Faults:\n${FAULTS.map(({ name, summary }) => `  ${name.padEnd(24)} ${summary}`).join("\n")}

Exit code 0: every invariant holds. 1: a violation, which the output names. 2: a wrong option.`,
  options: {
    minutes: number("how long it injects faults", String(MINUTES)),
    seed: { type: "string", value: "N", about: "repeat the choices of an earlier run (default: a random number)" },
    clients: number("clients that call at the same time", String(CLIENTS)),
    faults: { type: "string", value: "A,B", about: "only these faults (default: all)" },
    kafka: { type: "boolean", about: "start a real Kafka with three brokers instead of the local event bus" },
    history: { type: "string", value: "FILE", about: "keep the history as JSON lines" },
    report: { type: "string", value: "FILE", about: "the report as an HTML page", default: "chaos-report.html" },
  },
  run,
});

interface ChaosValues {
  readonly minutes: string;
  readonly seed: string | undefined;
  readonly clients: string;
  readonly faults: string | undefined;
  readonly kafka: boolean;
  readonly history: string | undefined;
  readonly report: string;
}

async function run(values: ChaosValues): Promise<void> {
  const names = values.faults?.split(",").filter((name) => name !== "");
  const unknown = names?.find((name) => !FAULTS.some((fault) => fault.name === name));
  if (unknown !== undefined)
    throw new UsageError(`There is no fault ${unknown}. The faults are ${FAULTS.map(({ name }) => name).join(", ")}.`);

  const interrupt = new AbortController();
  onStopSignal(
    () => {
      print("\nHealing, settling and checking. Press Ctrl-C again to end at once.");
      interrupt.abort();
    },
    () => process.exit(EXIT_CODES.interrupted),
  );

  const folder = await mkdtemp(join(tmpdir(), "lotus-chaos-"));
  const { isTTY } = process.stdout;
  let shownAt = 0;
  const report = await runChaos({
    seed: Math.floor(positive("seed", values.seed ?? String(Math.floor(Math.random() * 1e9)), 2 ** 32 - 1)),
    minutes: positive("minutes", values.minutes, 24 * 60),
    clients: Math.floor(positive("clients", values.clients, 256)),
    faults: names === undefined ? FAULTS : FAULTS.filter(({ name }) => names.includes(name)),
    kafka: values.kafka,
    folder,
    historyFile: values.history === undefined ? join(folder, "history.jsonl") : resolve(values.history),
    onProgress(line) {
      // A log file needs one line every ten seconds, not one a second.
      if (!isTTY && performance.now() - shownAt < 10_000) return;
      shownAt = performance.now();
      if (isTTY) process.stdout.write(`\r\u001b[K${line}`);
      else print(line);
    },
    interrupted: interrupt.signal,
  }).finally(() => rm(folder, { recursive: true, force: true }));
  if (isTTY) process.stdout.write("\r\u001b[K");

  await writeFile(values.report, htmlReport(report));
  const { operations, refused, unknown: lost, injections, settledMilliseconds, violations, checked, seed } = report;
  print(
    `Seed ${seed}: ${operations} operations (${refused} refused, ${lost} with an unknown outcome), ${injections.length} faults.`,
  );
  print(`The outbox drained ${(settledMilliseconds / 1000).toFixed(1)} s after the last fault.\n`);
  print(table(faultRows(report)));
  print(
    `\n${table([["checked", "number"], ...Object.entries(checked).map(([what, number]) => [what, String(number)])])}`,
  );
  print(`\nThe timeline is in ${values.report}.`);
  if (violations.length === 0) return print("Every invariant holds: no money and no event is lost.");
  for (const { invariant, sentence } of violations.slice(0, VIOLATIONS_SHOWN_MAX)) print(`${invariant}: ${sentence}`);
  if (violations.length > VIOLATIONS_SHOWN_MAX) print(`… and ${violations.length - VIOLATIONS_SHOWN_MAX} more.`);
  print(
    `Repeat the run: npm run chaos -- --seed ${seed} --minutes ${report.minutes} --clients ${report.clients}${report.kafka ? " --kafka" : ""}`,
  );
  process.exitCode = 1;
}
