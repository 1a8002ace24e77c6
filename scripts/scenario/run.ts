/** npm run scenario: plays the collection "Otus with billing" against a running Lotus, once or by many users at a time. */
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { runCommand, UsageError } from "../cli/command.ts";
import { urlOfRun } from "../local/run-file.ts";
import { ROOT } from "../project/functions.ts";

const COLLECTION = join(ROOT, "postman", "StreamProcessing.postman_collection.json");
const DEFAULT_URL = "http://localhost:8080";
const TIMES_MAX = 1000;
const USERS_MAX = 100;
const CONNECT_TIMEOUT_MILLISECONDS = 3_000;
/** Longer than a function may take for a request, so that what is reported is Lotus's own answer. */
const REQUEST_TIMEOUT_MILLISECONDS = 70_000;

const HELP = `Usage: npm run scenario -- [options]

Plays the scenario against a running Lotus: 14 requests, 22 assertions, a new user each run.

  --url URL   where Lotus is; else where npm start says it is, else ${DEFAULT_URL}
  --times N   each user runs it N times in a row (1 to ${TIMES_MAX}, default 1)
  --users N   N users at the same time (1 to ${USERS_MAX}, default 1)
  --quiet     no request and response bodies: one line a run
  --help      shows this

Exits 1 when an assertion or a request failed, 2 when an option is wrong.`;

export interface ScenarioOptions {
  readonly baseUrl: string;
  /** Runs in a row, by each user. */
  readonly times?: number;
  /** Users at the same time. */
  readonly users?: number;
  /** A single run shows newman's own output unless this is set. */
  readonly quiet?: boolean;
  /** Hears of each run when it is over. */
  readonly onRun?: (line: string) => void;
}

/** The answer times of one request, or of all, in milliseconds. */
export interface AnswerTimes {
  readonly name: string;
  readonly mean: number;
  readonly maximum: number;
}

export interface ScenarioSummary {
  readonly runs: number;
  readonly requests: number;
  readonly assertions: number;
  readonly failed: number;
  /** Each different failure once, with how often it happened. */
  readonly failures: readonly { readonly what: string; readonly count: number }[];
  readonly overall: AnswerTimes;
  readonly perRequest: readonly AnswerTimes[];
}

/** What happened in one run. */
interface Run {
  requests: number;
  assertions: number;
  readonly failures: string[];
  readonly answers: { readonly name: string; readonly milliseconds: number }[];
}

/** What newman tells with its events, which its types leave open. */
interface Told {
  readonly item: { readonly name: string };
  readonly response?: { readonly responseTime: number };
}
type Failure = (Error & { readonly test?: string }) | null;

/** One user, who plays the scenario `times` times in a row. `over` hears of each run. */
async function play(baseUrl: string, times: number, reporters: string[], over: (run: Run) => void): Promise<void> {
  // Loaded here because it takes most of a second, which a wrong option need not wait for.
  const { default: newman } = await import("newman");
  const begin = (): Run => ({ requests: 0, assertions: 0, failures: [], answers: [] });
  let run = begin();
  const note = (failure: Failure, { item }: Told): void => {
    if (failure === null) return;
    const parts = [item.name, failure.test, failure.message].filter((part) => part !== undefined);
    run.failures.push(parts.map((part) => part.split("\n")[0]).join(" | "));
  };
  const settings = {
    collection: COLLECTION,
    envVar: [{ key: "baseUrl", value: baseUrl }],
    // Not one newman run a scenario: newman keeps the 5 MB of each for as long as the process lives.
    iterationCount: times,
    timeoutRequest: REQUEST_TIMEOUT_MILLISECONDS,
    reporters,
  };
  return new Promise((resolve, reject) => {
    newman
      .run(settings, (error) => (error ? reject(error) : resolve()))
      .on("request", (failure: Failure, told: Told) => {
        run.requests += 1;
        if (told.response) run.answers.push({ name: told.item.name, milliseconds: told.response.responseTime });
        note(failure, told);
      })
      .on("assertion", (failure: Failure, told: Told) => {
        run.assertions += 1;
        note(failure, told);
      })
      .on("script", note)
      .on("iteration", () => {
        over(run);
        run = begin();
      });
  });
}

function timesOf(name: string, answers: Run["answers"]): AnswerTimes {
  const total = answers.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
  const maximum = answers.reduce((most, { milliseconds }) => Math.max(most, milliseconds), 0);
  return { name, mean: total / Math.max(answers.length, 1), maximum };
}

/** Plays the scenario `times` times in a row by each of `users` users at the same time, and sums up how it went. */
export async function runScenario(options: ScenarioOptions): Promise<ScenarioSummary> {
  const { baseUrl, times = 1, users = 1, quiet = false, onRun } = options;
  const reporters = times * users === 1 && !quiet ? ["cli"] : [];
  const runs: Run[] = [];
  const over = (run: Run): void => {
    runs.push(run);
    const { requests, assertions, failures, answers } = run;
    const mean = timesOf("", answers).mean.toFixed(0);
    const counts = `${requests} requests, ${assertions} assertions, ${failures.length} failed`;
    onRun?.(`Run ${runs.length} of ${times * users}: ${counts}, mean answer ${mean} ms`);
  };
  await Promise.all(Array.from({ length: users }, () => play(baseUrl, times, reporters, over)));

  const answers = runs.flatMap((run) => run.answers);
  const failures = runs.flatMap((run) => run.failures);
  const names = [...new Set(answers.map(({ name }) => name))];
  return {
    runs: runs.length,
    requests: runs.reduce((sum, run) => sum + run.requests, 0),
    assertions: runs.reduce((sum, run) => sum + run.assertions, 0),
    failed: failures.length,
    failures: [...new Set(failures)].map((what) => ({ what, count: failures.filter((one) => one === what).length })),
    overall: timesOf("all requests", answers),
    perRequest: names.map((name) =>
      timesOf(
        name,
        answers.filter((answer) => answer.name === name),
      ),
    ),
  };
}

function report(summary: ScenarioSummary, users: number): void {
  const { runs, requests, assertions, failed, failures, overall, perRequest } = summary;
  const times = [...perRequest, overall];
  const width = Math.max(...times.map(({ name }) => name.length));
  const row = (name: string, mean: string, maximum: string) =>
    console.log(`${name.padEnd(width)} ${mean.padStart(8)} ${maximum.padStart(8)}`);
  if (runs > 1) {
    console.log();
    row("answer time in ms", "mean", "maximum");
    for (const { name, mean, maximum } of times) row(name, mean.toFixed(1), maximum.toFixed(0));
    if (users > 1) console.log("(All users share one process here: part of these times is its own work.)");
    console.log(`\n${runs} runs, ${requests} requests, ${assertions} assertions, ${failed} failed`);
  }
  if (failed > 0) console.error("\nFailed:");
  for (const { what, count } of failures) console.error(`  ${count} × ${what}`);
}

/** Whether something takes connections at the URL. Asks no function, so it starts none. */
async function listens({ hostname, port, protocol }: URL): Promise<boolean> {
  const host = hostname.replace(/^\[|\]$/g, "");
  const socket = connect({ host, port: Number(port) || (protocol === "https:" ? 443 : 80) });
  try {
    await once(socket, "connect", { signal: AbortSignal.timeout(CONNECT_TIMEOUT_MILLISECONDS) });
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

function readCount(option: string, text: string, maximum: number): number {
  const count = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > maximum) {
    throw new UsageError(`--${option} takes a whole number from 1 to ${maximum}, not "${text}"`);
  }
  return count;
}

function readUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") {
    throw new UsageError(`--url takes an address such as ${DEFAULT_URL}, not "${text}"`);
  }
  return url;
}

function readArguments(args: readonly string[]) {
  const text = { type: "string" } as const;
  const flag = { type: "boolean", default: false } as const;
  try {
    return parseArgs({ args: [...args], options: { url: text, times: text, users: text, quiet: flag, help: flag } })
      .values;
  } catch (error) {
    // The first sentence names the option; what follows is advice about positional arguments, which are not taken.
    throw new UsageError(String((error as Error).message).split(/\.\s/)[0]);
  }
}

async function main(): Promise<void> {
  const { url, times = "1", users = "1", quiet, help } = readArguments(process.argv.slice(2));
  if (help) return console.log(HELP);
  const counts = { times: readCount("times", times, TIMES_MAX), users: readCount("users", users, USERS_MAX) };
  const target = readUrl(url ?? (await urlOfRun(join(ROOT, ".lotus"))) ?? DEFAULT_URL);
  const baseUrl = `${target.origin}${target.pathname}`.replace(/\/+$/, "");
  if (!(await listens(target)))
    throw new Error(`Nothing answers at ${baseUrl}. Start Lotus in another terminal: npm start.`);
  const shown = counts.times * counts.users === 1 && !quiet;
  const summary = await runScenario({ baseUrl, ...counts, quiet, ...(shown ? {} : { onRun: console.log }) });
  // Of a run that is shown, newman has said it all.
  if (!shown) report(summary, counts.users);
  if (summary.failed > 0) process.exitCode = 1;
}

if (process.argv[1] === import.meta.filename) {
  runCommand(main, (error) =>
    error instanceof UsageError ? `${error.message}. See npm run scenario -- --help.` : error.message,
  );
}
