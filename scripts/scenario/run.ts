/** Plays the collection "Otus with billing" against a running Lotus, once or by many users at a time. */
import { join } from "node:path";
import { ROOT } from "../project/paths.ts";

const COLLECTION = join(ROOT, "postman", "StreamProcessing.postman_collection.json");
/** Longer than a function may take for a request, so that Lotus's own answer is reported. */
const REQUEST_TIMEOUT_MILLISECONDS = 70_000;

export interface ScenarioOptions {
  readonly baseUrl: string;
  /** Runs in a row, by each user. */
  readonly times?: number;
  /** Users at the same time. */
  readonly users?: number;
  /** A single run shows newman's own output unless this is set. */
  readonly quiet?: boolean;
  /** Is called at the end of each run. */
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
  /** Each different failure once, with its count. */
  readonly failures: readonly { readonly what: string; readonly count: number }[];
  readonly overall: AnswerTimes;
  readonly perRequest: readonly AnswerTimes[];
}

/** The result of one run. */
interface Run {
  requests: number;
  assertions: number;
  readonly failures: string[];
  readonly answers: { readonly name: string; readonly milliseconds: number }[];
}

/** The data of newman's events, which its types leave open. */
interface Told {
  readonly item: { readonly name: string };
  readonly response?: { readonly responseTime: number };
}
type Failure = (Error & { readonly test?: string }) | null;

/** One user, who plays the scenario `times` times in a row. Calls `over` at the end of each run. */
async function play(baseUrl: string, times: number, reporters: string[], over: (run: Run) => void): Promise<void> {
  // Loaded here, because loading takes most of a second and a wrong option needs no scenario.
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
    // One newman run for all iterations: newman keeps 5 MB of each run until the process ends.
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

/** Plays the scenario `times` times in a row by each of `users` users at the same time, and returns the totals. */
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
