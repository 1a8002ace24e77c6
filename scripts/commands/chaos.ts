/** lotus chaos: injects faults under load, and checks afterwards that no money and no event is lost. */
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Client } from "pg";
import { FAULTS } from "../chaos/faults.ts";
import { faultRows, htmlReport, type Report } from "../chaos/report.ts";
import { type ChaosOptions, runChaos } from "../chaos/run.ts";
import { SABOTAGES } from "../chaos/sabotage.ts";
import { command } from "../cli/command.ts";
import { EXIT_CODES, UsageError } from "../cli/errors.ts";
import { print } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { onStopSignal } from "../process/signals.ts";

const MINUTES = 3;
const CLIENTS = 8;
const OVERLAP = 3;
const OPERATIONS_MAX = 10_000_000;
const VIOLATIONS_SHOWN_MAX = 10;

function positive(name: string, text: string, max: number): number {
  const number = Number(text);
  if (!/^\d+(?:\.\d+)?$/.test(text) || number <= 0 || number > max)
    throw new UsageError(`--${name} must be a number above 0 and at most ${max}; ${text} is not.`);
  return number;
}

const number = (about: string, preset: string) => ({ type: "string", value: "N", about, default: preset }) as const;

export default command({
  about: "Injects faults under load, and checks afterwards that no money and no event is lost.",
  notes: `It starts its own Lotus, with its own Postgres, in a temporary folder. With --url and --database it uses an installation that exists
and injects only the faults that are possible there. The registered users and their money stay in that database.

Faults:\n${FAULTS.map(({ name, summary }) => `  ${name.padEnd(24)} ${summary}`).join("\n")}

Sabotages:\n${SABOTAGES.map(({ name, summary }) => `  ${name.padEnd(24)} ${summary}`).join("\n")}

Exit code 0: every invariant holds. 1: a violation, which the output names. 2: a wrong option.`,
  options: {
    minutes: number("how long it injects faults", String(MINUTES)),
    seed: { type: "string", value: "N", about: "repeat the choices of an earlier run (default: a random number)" },
    clients: number("clients that call at the same time", String(CLIENTS)),
    operations: { type: "string", value: "N", about: "continue after the minutes until N operations have an outcome" },
    faults: { type: "string", value: "A,B", about: "only these faults (default: all)" },
    overlap: number("faults that are active at the same time", String(OVERLAP)),
    disk: { type: "boolean", about: "keep the database on a small filesystem, so that it can be full (needs root)" },
    pooler: { type: "boolean", about: "put a PgBouncer between the functions and the database (needs pgbouncer)" },
    sabotage: {
      type: "string",
      value: "NAME",
      about: "break Lotus first in this way: the run must find the violation",
    },
    url: { type: "string", value: "URL", about: "the gateway of an existing installation; needs --database" },
    database: { type: "string", value: "URL", about: "its database, as the owner or as a superuser" },
    kafka: { type: "boolean", about: "start a real Kafka with three brokers instead of the local event bus" },
    history: { type: "string", value: "FILE", about: "keep the history as JSON lines" },
    log: {
      type: "string",
      value: "FILE",
      about: "the lines of the functions and of Lotus, with times",
      default: "chaos-lotus.log",
    },
    report: { type: "string", value: "FILE", about: "the report as an HTML page", default: "chaos-report.html" },
  },
  run,
});

interface ChaosValues {
  readonly minutes: string;
  readonly seed: string | undefined;
  readonly clients: string;
  readonly operations: string | undefined;
  readonly faults: string | undefined;
  readonly overlap: string;
  readonly disk: boolean;
  readonly pooler: boolean;
  readonly sabotage: string | undefined;
  readonly url: string | undefined;
  readonly database: string | undefined;
  readonly kafka: boolean;
  readonly history: string | undefined;
  readonly log: string;
  readonly report: string;
}

/** Returns the installation that --url and --database name. */
async function readExisting({
  url,
  database,
  kafka,
  sabotage,
  disk,
  pooler,
}: ChaosValues): Promise<ChaosOptions["existing"]> {
  if (url === undefined && database === undefined) return undefined;
  if (url === undefined || database === undefined)
    throw new UsageError("--url and --database belong together: the checker reads the database of the installation.");
  if (kafka || sabotage !== undefined || disk || pooler)
    throw new UsageError(
      "--kafka, --sabotage, --disk and --pooler need a Lotus that the run starts itself: omit --url.",
    );
  if (!URL.canParse(url) || !URL.canParse(database))
    throw new UsageError("--url and --database must be URLs, such as http://localhost:8080 and postgres://….");
  const client = new Client({ connectionString: database });
  await client.connect();
  try {
    const { rows } = await client.query("select usesuper from pg_user where usename = current_user");
    return {
      url: url.replace(/\/$/, ""),
      database: { adminUrl: database, ...(rows[0]?.usesuper && { superuserUrl: database }) },
    };
  } finally {
    await client.end();
  }
}

async function run(values: ChaosValues): Promise<void> {
  const names = values.faults?.split(",").filter((name) => name !== "");
  const unknown = names?.find((name) => !FAULTS.some((fault) => fault.name === name));
  if (unknown !== undefined)
    throw new UsageError(
      `The fault ${unknown} does not exist. The faults are ${FAULTS.map(({ name }) => name).join(", ")}.`,
    );

  const sabotage = SABOTAGES.find(({ name }) => name === values.sabotage);
  if (values.sabotage !== undefined && sabotage === undefined)
    throw new UsageError(
      `The sabotage ${values.sabotage} does not exist. The sabotages are ${SABOTAGES.map(({ name }) => name).join(", ")}.`,
    );
  const existing = await readExisting(values);

  const interrupt = new AbortController();
  onStopSignal(
    () => {
      print("\nHealing, settling and checking. Press Ctrl-C again to end at once.");
      interrupt.abort();
    },
    () => process.exit(EXIT_CODES.interrupted),
  );

  const folder = await mkdtemp(join(tmpdir(), "lotus-chaos-"));
  // Postgres runs as another user when root starts it, and must be able to enter.
  await chmod(folder, 0o711);
  const { isTTY } = process.stdout;
  let shownAt = 0;
  const report = await runChaos({
    seed: Math.floor(positive("seed", values.seed ?? String(Math.floor(Math.random() * 1e9)), 2 ** 32 - 1)),
    minutes: positive("minutes", values.minutes, 24 * 60),
    clients: Math.floor(positive("clients", values.clients, 256)),
    faults: names === undefined ? FAULTS : FAULTS.filter(({ name }) => names.includes(name)),
    overlap: Math.floor(positive("overlap", values.overlap, 5)),
    ...(values.operations !== undefined && {
      operationsMin: Math.floor(positive("operations", values.operations, OPERATIONS_MAX)),
    }),
    kafka: values.kafka,
    smallDisk: values.disk,
    pooler: values.pooler,
    ...(existing !== undefined && { existing }),
    ...(sabotage !== undefined && { sabotage }),
    folder,
    historyFile: values.history === undefined ? join(folder, "history.jsonl") : resolve(values.history),
    logFile: resolve(values.log),
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
  await showReport(report, values);
  // Node 20 may wait for ever at its end for a socket that a fault has cut (its CleanupHandles repeats the event loop).
  process.exit(report.violations.length === 0 ? 0 : 1);
}

/** Writes the page, and prints the figures and the violations. */
async function showReport(report: Report, values: ChaosValues): Promise<void> {
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
  const shown = new Set<string>();
  for (const { invariant, sentence, user, operations: around } of violations.slice(0, VIOLATIONS_SHOWN_MAX)) {
    print(`${invariant}: ${sentence}`);
    if (user === undefined || user === "" || shown.has(user)) continue;
    shown.add(user);
    print(`The operations of user ${user}:\n${around.map((line) => `  ${line}`).join("\n")}`);
  }
  if (violations.length > VIOLATIONS_SHOWN_MAX) print(`… and ${violations.length - VIOLATIONS_SHOWN_MAX} more.`);
  print(
    `Repeat the run: npm run chaos -- --seed ${seed} --minutes ${report.minutes} --clients ${report.clients}${report.kafka ? " --kafka" : ""}${values.sabotage === undefined ? "" : ` --sabotage ${values.sabotage}`}`,
  );
}
