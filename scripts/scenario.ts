/** npm run scenario: plays the collection "Otus with billing" against a running Lotus, once or by many users at a time. */
import type { EventEmitter } from "node:events";
import { readFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ROOT } from "./functions.ts";

const COLLECTION = join(ROOT, "postman", "StreamProcessing.postman_collection.json");
/** Where npm start tells, while it runs, at which address. */
const GATEWAY_FILE = join(ROOT, ".lotus", "gateway.json");
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

/** What newman tells of while it runs; its own types leave events open. */
interface NewmanEvent {
  readonly item?: { readonly name: string };
  readonly response?: { readonly responseTime: number };
}

/** Counts what happens in some runs, by listening to newman. */
class Tally {
  requests = 0;
  assertions = 0;
  failed = 0;
  readonly failures = new Map<string, number>();
  readonly milliseconds = new Map<string, number[]>();

  listen(newman: EventEmitter): void {
    newman.on("request", (error: Error | null, { item, response }: NewmanEvent) => {
      this.requests += 1;
      if (error) this.fail(item?.name, error.message);
      if (!item || !response) return;
      this.milliseconds.set(item.name, [...(this.milliseconds.get(item.name) ?? []), response.responseTime]);
    });
    newman.on("assertion", (error: (Error & { test: string }) | null, { item }: NewmanEvent) => {
      this.assertions += 1;
      if (error) this.fail(item?.name, error.test, error.message);
    });
    newman.on("script", (error: Error | null, { item }: NewmanEvent) => {
      if (error) this.fail(item?.name, error.message);
    });
  }

  fail(...parts: readonly (string | undefined)[]): void {
    const what = parts.map((part) => part?.split("\n")[0]).join(" | ");
    this.failed += 1;
    this.failures.set(what, (this.failures.get(what) ?? 0) + 1);
  }
}

function timesOf(name: string, milliseconds: readonly number[]): AnswerTimes {
  const total = milliseconds.reduce((sum, one) => sum + one, 0);
  const maximum = milliseconds.reduce((most, one) => Math.max(most, one), 0);
  return { name, mean: total / Math.max(milliseconds.length, 1), maximum };
}

/** Plays the scenario `times` times in a row by each of `users` users at the same time, and sums up how it went. */
export async function runScenario(options: ScenarioOptions): Promise<ScenarioSummary> {
  const { baseUrl, times = 1, users = 1, quiet = false, onRun } = options;
  // Loaded here because it takes most of a second, which a wrong option need not wait for.
  const { default: newman } = await import("newman");
  const tally = new Tally();
  let runs = 0;

  const user = (): Promise<void> =>
    new Promise((resolve, reject) => {
      // Iterations of one newman run, not one newman run each: newman never frees a run's 5 MB of sandbox.
      const run = newman.run(
        {
          collection: COLLECTION,
          envVar: [{ key: "baseUrl", value: baseUrl }],
          iterationCount: times,
          reporters: times * users === 1 && !quiet ? ["cli"] : [],
          timeoutRequest: REQUEST_TIMEOUT_MILLISECONDS,
        },
        (error) => (error ? reject(error) : resolve()),
      );
      tally.listen(run);
      run.on("iteration", () => {
        runs += 1;
        onRun?.(`Run ${runs} of ${times * users} is over; ${tally.failed} failed so far`);
      });
    });
  await Promise.all(Array.from({ length: users }, user));

  const { requests, assertions, failed, failures, milliseconds } = tally;
  return {
    ...{ runs, requests, assertions, failed },
    failures: [...failures].map(([what, count]) => ({ what, count })),
    overall: timesOf("all requests", [...milliseconds.values()].flat()),
    perRequest: [...milliseconds].map(([name, each]) => timesOf(name, each)),
  };
}

function table({ runs, requests, assertions, failed, overall, perRequest }: ScenarioSummary): string {
  const times = [...perRequest, overall];
  const width = Math.max(...times.map(({ name }) => name.length));
  const row = (name: string, mean: string, maximum: string) =>
    `${name.padEnd(width)} ${mean.padStart(10)} ${maximum.padStart(10)}`;
  return [
    row("answer time, ms", "mean", "maximum"),
    ...times.map(({ name, mean, maximum }) => row(name, mean.toFixed(1), maximum.toFixed(0))),
    "",
    `${runs} runs, ${requests} requests, ${assertions} assertions, ${failed} failed`,
  ].join("\n");
}

/** Whether something takes connections at the URL. Asks no function, so it starts none. */
function listens(url: URL): Promise<boolean> {
  return new Promise((resolve) => {
    const port = Number(url.port) || (url.protocol === "https:" ? 443 : 80);
    const socket = connect({ host: url.hostname.replace(/^\[|\]$/g, ""), port, timeout: CONNECT_TIMEOUT_MILLISECONDS });
    const settle = (answer: boolean): void => {
      socket.destroy();
      resolve(answer);
    };
    socket.once("connect", () => settle(true));
    socket.once("error", () => settle(false));
    socket.once("timeout", () => settle(false));
  });
}

async function gatewayUrl(): Promise<string> {
  try {
    const { url } = JSON.parse(await readFile(GATEWAY_FILE, "utf8")) as { url?: unknown };
    return typeof url === "string" && URL.canParse(url) ? url : DEFAULT_URL;
  } catch {
    // No Lotus runs in this checkout, or the file is half written: the default is as good a guess as any.
    return DEFAULT_URL;
  }
}

class WrongOption extends Error {}

function readCount(option: string, text: string, maximum: number): number {
  const count = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > maximum) {
    throw new WrongOption(`--${option} takes a whole number from 1 to ${maximum}, not "${text}"`);
  }
  return count;
}

function readUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") {
    throw new WrongOption(`--url takes an address such as ${DEFAULT_URL}, not "${text}"`);
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
    throw new WrongOption(String((error as Error).message).split(/\.\s/)[0]);
  }
}

async function main(args: readonly string[]): Promise<number> {
  const { url, times = "1", users = "1", quiet, help } = readArguments(args);
  if (help) {
    console.log(HELP);
    return 0;
  }
  const counts = { times: readCount("times", times, TIMES_MAX), users: readCount("users", users, USERS_MAX) };
  const target = readUrl(url ?? (await gatewayUrl()));
  const baseUrl = `${target.origin}${target.pathname}`.replace(/\/+$/, "");
  if (!(await listens(target))) {
    console.error(`Nothing answers at ${baseUrl}. Start Lotus in another terminal: npm start.`);
    return 1;
  }
  const one = counts.times * counts.users === 1;
  const summary = await runScenario({ baseUrl, ...counts, quiet, ...(one && !quiet ? {} : { onRun: console.log }) });
  if (!one) console.log(`\n${table(summary)}`);
  if (counts.users > 1) console.log("All users share this one process: its own work is part of the answer times.");
  if (summary.failed === 0) return 0;
  console.error("\nFailed:");
  for (const { what, count } of summary.failures) console.error(`  ${count} × ${what}`);
  return 1;
}

if (process.argv[1] === import.meta.filename) {
  try {
    process.exitCode = await main(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof WrongOption)) throw error;
    console.error(`${error.message}. See npm run scenario -- --help.`);
    process.exitCode = 2;
  }
}
