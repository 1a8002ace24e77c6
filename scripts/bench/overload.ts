/** Four times the payments that a process can serve: refusals, memory, the latency of accepted payments, and the recovery. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { Agent, request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { guardChild } from "../process/child.ts";
import { TYPESCRIPT } from "../project/paths.ts";
import { memoryPeakMebibytes } from "../testing/process.ts";
import type { BenchOptions } from "./flags.ts";
import type { FloodMessage, FloodOptions, FloodResult } from "./programs/flood.ts";
import type { Figure } from "./report.ts";
import { quantile } from "./statistics.ts";
import { payments, program, startFunction, withWorld } from "./world.ts";

export const about = "four times the payments that a process can serve, for a minute";

const USERS = 400;
const CONNECTIONS = 64;
const OVERLOAD = 4;
/** The duration of the overload, as a multiple of `--seconds`: a minute by default. */
const SECONDS_FACTOR = 30;
/** More than the requests that a process works on, and fewer than the connections that it accepts: each refusal is an answer. */
const SENT_AT_A_TIME_MAX = 1_500;
/** The bench process sends one payment of the probe at this interval. The flood runs in another process and does not delay the probe. */
const PROBE_MILLISECONDS = 50;
const PROBES_AT_A_TIME_MAX = 100;
const PROGRESS_SECONDS = 10;
const REFUSAL_MILLISECONDS_MAX = 100;
const MEMORY_MEBIBYTES_MAX = 512;
const ACCEPTED_MILLISECONDS_MAX = 10_000;
const RECOVERY_MILLISECONDS_MAX = 5_000;
/** A faster payment shows that the process is idle again. */
const RECOVERED_MILLISECONDS = 100;

/** The answer to a payment. Status 0 is a connection that broke. */
interface Answer {
  readonly status: number;
  readonly hasRetryAfter: boolean;
  readonly milliseconds: number;
}

/** Sends one payment. */
function pay(agent: Agent, port: number, path: string, token: string): Promise<Answer> {
  return new Promise((resolve) => {
    const began = performance.now();
    const end = (status: number, hasRetryAfter: boolean) =>
      resolve({ status, hasRetryAfter, milliseconds: performance.now() - began });
    const headers = { authorization: `Bearer ${token}` };
    const sending = request({ host: "127.0.0.1", port, path, method: "POST", agent, headers }, (answer) => {
      answer.on("error", () => undefined);
      answer.resume().once("end", () => end(answer.statusCode ?? 0, answer.headers["retry-after"] !== undefined));
      // A connection that breaks within the answer has no `end`.
      answer.once("close", () => end(0, false));
    });
    sending.once("error", () => end(0, false)).end();
  });
}

/** Runs the flood in another process, and prints its progress. */
async function flood(options: FloodOptions): Promise<FloodResult> {
  const child = fork(program("flood.ts"), [], { execArgv: ["--import", TYPESCRIPT] });
  guardChild(child);
  const ended = once(child, "exit").then(() => {
    throw new Error("The process of the flood ended early.");
  });
  let reports = 0;
  const result = new Promise<FloodResult>((resolve) => {
    child.on("message", (message: FloodMessage) => {
      if (message.kind === "ended") return resolve(message);
      const { sent, accepted, refused, others } = message;
      if (++reports % PROGRESS_SECONDS === 0)
        process.stderr.write(
          `  ${reports} of ${options.seconds} s: ${sent} sent, ${accepted} accepted, ${refused} refused, ${others} others\n`,
        );
    });
  });
  child.send(options);
  const first = await Promise.race([result, ended]);
  ended.catch(() => undefined);
  child.kill();
  return first;
}

/** Sends payments at a low rate until it is stopped. */
function startProbe(agent: Agent, port: number, requests: ReturnType<typeof payments>) {
  const answers: Answer[] = [];
  const waiting = new Set<Promise<Answer>>();
  let sent = 0;
  const timer = setInterval(() => {
    if (waiting.size >= PROBES_AT_A_TIME_MAX) return;
    const { path = "", token = "" } = requests[sent++ % requests.length] ?? {};
    const payment = pay(agent, port, path, token);
    waiting.add(payment);
    void payment.then((answer) => {
      waiting.delete(payment);
      answers.push(answer);
    });
  }, PROBE_MILLISECONDS);
  return async () => {
    clearInterval(timer);
    await Promise.all(waiting);
    return answers;
  };
}

const isAccepted = ({ status }: Answer) => status >= 200 && status <= 299;
const isRefused = ({ status, hasRetryAfter }: Answer) => status === 503 && hasRetryAfter;

export default async function overload({ node, seconds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const side = await startFunction(database, "order-pay", node);
    const requests = payments(await database.users(USERS));
    await world.load(side, { connections: CONNECTIONS, seconds, requests });
    const { perSecond } = await world.load(side, { connections: CONNECTIONS, seconds, requests });
    const { port } = side;
    const agent = new Agent({ keepAlive: true });
    const endProbe = startProbe(agent, port, requests);
    const floodSeconds = seconds * SECONDS_FACTOR;
    const result = await flood({
      port,
      connections: SENT_AT_A_TIME_MAX,
      perSecond: OVERLOAD * perSecond,
      seconds: floodSeconds,
      requests,
    });
    const ended = performance.now() - result.lastAnswerMilliseconds;
    const probes = await endProbe();
    const [{ path = "", token = "" } = {}] = requests;
    let recovery = Number.POSITIVE_INFINITY;
    while (performance.now() - ended < 2 * RECOVERY_MILLISECONDS_MAX) {
      const answer = await pay(agent, port, path, token);
      if (isAccepted(answer) && answer.milliseconds <= RECOVERED_MILLISECONDS) {
        recovery = performance.now() - ended;
        break;
      }
      await delay(PROBE_MILLISECONDS);
    }
    const peak = await memoryPeakMebibytes(side.child.pid ?? 0);
    agent.destroy();
    await side.stop();
    const refusals = probes.filter(isRefused).map(({ milliseconds }) => milliseconds);
    const others = probes.filter((answer) => !isAccepted(answer) && !isRefused(answer)).length;
    const own = (what: string, value: number, max?: number): Figure => ({
      what,
      lotus: [value],
      ...(max !== undefined && { targets: [{ of: "lotus" as const, max }] }),
    });
    return [
      own("payments/s that the process can serve, 64 connections", perSecond),
      own("payments/s sent", result.sent / floodSeconds),
      own("payments accepted", result.accepted),
      own("payments refused by 503 with Retry-After", result.refused),
      own("other answers and broken connections", result.others + others, 0),
      own("refusals that the probe measured", refusals.length),
      ...(refusals.length === 0
        ? []
        : [
            own("refusal p50, ms", quantile(refusals, 0.5)),
            own("refusal p99, ms", quantile(refusals, 0.99), REFUSAL_MILLISECONDS_MAX),
          ]),
      own("accepted payment p99, ms", result.acceptedP99Milliseconds, ACCEPTED_MILLISECONDS_MAX),
      own("memory peak, MiB", peak, MEMORY_MEBIBYTES_MAX),
      own("recovery after the flood, ms", recovery, RECOVERY_MILLISECONDS_MAX),
    ];
  });
}
