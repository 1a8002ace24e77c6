/** `npm run chaos`: kills, cuts, freezes and duplicates under load, and proves afterwards that no money and no event is lost. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { FAULTS } from "../chaos/faults.ts";
import { faultRows, htmlReport } from "../chaos/report.ts";
import { runChaos } from "../chaos/run.ts";
import { runCommand, UsageError } from "../cli/command.ts";
import { table } from "../cli/output.ts";

const MINUTES = 3;
const CLIENTS = 8;
const VIOLATIONS_SHOWN_MAX = 10;

const USAGE = `Usage: npm run chaos -- [options]

  --minutes N        how long faults are injected (default ${MINUTES})
  --seed N           repeats the choices of an earlier run (default: a random one, which the report names)
  --clients N        clients that call at the same time (default ${CLIENTS})
  --faults A,B       only these faults (default: all)
  --kafka            a real Kafka with three brokers instead of the local event bus
  --history FILE     keeps the history as JSON lines
  --report FILE      writes the report as an HTML page (default chaos-report.html)

Faults:
${FAULTS.map(({ name, summary }) => `  ${name.padEnd(24)} ${summary}`).join("\n")}

Exit code 0: every invariant holds. 1: a violation, which the output names. 2: a wrong option.`;

function positive(name: string, text: string, max: number): number {
  const number = Number(text);
  if (!/^\d+(?:\.\d+)?$/.test(text) || number <= 0 || number > max)
    throw new UsageError(`--${name} must be a number above 0 and at most ${max}; ${text} is not.`);
  return number;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      help: { type: "boolean" },
      minutes: { type: "string", default: String(MINUTES) },
      seed: { type: "string", default: String(Math.floor(Math.random() * 1e9)) },
      clients: { type: "string", default: String(CLIENTS) },
      faults: { type: "string" },
      kafka: { type: "boolean", default: false },
      history: { type: "string" },
      report: { type: "string", default: "chaos-report.html" },
    },
  });
  if (values.help) return console.log(USAGE);
  const names = values.faults?.split(",").filter((name) => name !== "");
  const unknown = names?.find((name) => !FAULTS.some((fault) => fault.name === name));
  if (unknown !== undefined)
    throw new UsageError(`There is no fault ${unknown}. The faults are ${FAULTS.map(({ name }) => name).join(", ")}.`);

  const interrupt = new AbortController();
  const onSignal = () => {
    if (interrupt.signal.aborted) process.exit(1);
    console.log("\nHealing, settling and checking. Press Ctrl-C again to end at once.");
    interrupt.abort();
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);

  const folder = await mkdtemp(join(tmpdir(), "lotus-chaos-"));
  const { isTTY } = process.stdout;
  let shownAt = 0;
  const report = await runChaos({
    seed: Math.floor(positive("seed", values.seed, 2 ** 32 - 1)),
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
      else console.log(line);
    },
    interrupted: interrupt.signal,
  }).finally(() => rm(folder, { recursive: true, force: true }));
  if (isTTY) process.stdout.write("\r\u001b[K");

  await writeFile(values.report, htmlReport(report));
  const { operations, refused, unknown: lost, injections, settledMilliseconds, violations, checked, seed } = report;
  console.log(
    `Seed ${seed}: ${operations} operations (${refused} refused, ${lost} with an unknown outcome), ${injections.length} faults.`,
  );
  console.log(`The outbox drained ${(settledMilliseconds / 1000).toFixed(1)} s after the last fault.\n`);
  console.log(table(faultRows(report)));
  console.log(
    `\n${table([["checked", "number"], ...Object.entries(checked).map(([what, number]) => [what, String(number)])])}`,
  );
  console.log(`\nThe timeline is in ${values.report}.`);
  if (violations.length === 0) return console.log("Every invariant holds: no money and no event is lost.");
  for (const { invariant, sentence } of violations.slice(0, VIOLATIONS_SHOWN_MAX))
    console.log(`${invariant}: ${sentence}`);
  if (violations.length > VIOLATIONS_SHOWN_MAX) console.log(`… and ${violations.length - VIOLATIONS_SHOWN_MAX} more.`);
  console.log(
    `Repeat the run: npm run chaos -- --seed ${seed} --minutes ${report.minutes} --clients ${report.clients}${report.kafka ? " --kafka" : ""}`,
  );
  process.exitCode = 1;
}

runCommand(main);
