/** lotus scenario: plays the Postman scenario against a running Lotus. */
import { once } from "node:events";
import { connect } from "node:net";
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { folder, json, readCount, readFolder, url } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { runOf } from "../local/run-file.ts";
import { runScenario, type ScenarioSummary } from "../scenario/run.ts";

const DEFAULT_URL = "http://localhost:8080";
const TIMES_MAX = 1000;
const USERS_MAX = 100;
const CONNECT_TIMEOUT_MILLISECONDS = 3_000;

function printSummary({ runs, requests, assertions, failed, overall, perRequest }: ScenarioSummary, users: number) {
  if (runs > 1) {
    const rows = [...perRequest, overall].map(({ name, mean, maximum }) => [name, mean.toFixed(1), maximum.toFixed(0)]);
    print(`\n${table([["answer time in ms", "mean", "maximum"], ...rows])}`);
    if (users > 1) print("(All users share one process here, so these times include its work.)");
    print(`\n${runs} runs, ${requests} requests, ${assertions} assertions, ${failed} failed`);
  }
}

/** Whether a server accepts connections at the URL. Calls no function, so it starts none. */
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

function readUrl(text: string): URL {
  const parsed = URL.canParse(text) ? new URL(text) : undefined;
  if (parsed?.protocol !== "http:" && parsed?.protocol !== "https:") {
    throw new UsageError(`--url must be an address such as ${DEFAULT_URL}; "${text}" is not.`);
  }
  return parsed;
}

export default command({
  about: "Plays the scenario against a running Lotus: 14 requests, 22 assertions, a new user each run.",
  options: {
    url,
    folder,
    times: {
      type: "string",
      value: "N",
      about: `runs of each user, one after the other (1 to ${TIMES_MAX})`,
      default: "1",
    },
    users: { type: "string", value: "N", about: `users at the same time (1 to ${USERS_MAX})`, default: "1" },
    quiet: { type: "boolean", about: "no request and response bodies: one line a run" },
    json,
  },
  async run(values) {
    const times = readCount("times", values.times, 1, TIMES_MAX);
    const users = readCount("users", values.users, 1, USERS_MAX);
    const target = readUrl(values.url ?? (await runOf(readFolder(values.folder)))?.url ?? DEFAULT_URL);
    const baseUrl = `${target.origin}${target.pathname}`.replace(/\/+$/, "");
    if (!(await listens(target)))
      throw new Refusal(`No server answers at ${baseUrl}. Start Lotus in another terminal: npm start.`);
    const shown = times * users === 1 && !values.quiet && !values.json;
    const onRun = shown || values.json ? undefined : print;
    const summary = await runScenario({ baseUrl, times, users, quiet: !shown, ...(onRun && { onRun }) });
    if (values.json) printJson(summary);
    else printSummary(summary, users);
    if (summary.failed === 0) return;
    const failures = summary.failures.map(({ what, count }) => `  ${count} × ${what}`);
    throw new Refusal(`\nFailed:\n${failures.join("\n")}`);
  },
});
