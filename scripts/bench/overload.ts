/** Four times the payments that a process can serve: refusals, memory, the latency of accepted payments, and the recovery. */
import { Agent, request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { memoryPeakMebibytes } from "../testing/process.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { quantile } from "./statistics.ts";
import { type Listening, payments, startFunction, withWorld } from "./world.ts";

export const about = "four times the payments that a process can serve, for a minute";

const USERS = 400;
const CONNECTIONS = 64;
const OVERLOAD = 4;
/** The duration of the overload, as a multiple of `--seconds`: a minute by default. */
const SECONDS_FACTOR = 30;
/** More than the requests that a process works on, and fewer than the connections that it accepts: each refusal is an answer. */
const SENT_AT_A_TIME_MAX = 1_500;
const STEP_MILLISECONDS = 10;
const REFUSAL_MILLISECONDS_MAX = 100;
const MEMORY_MEBIBYTES_MAX = 512;
const ACCEPTED_MILLISECONDS_MAX = 10_000;
const RECOVERY_MILLISECONDS_MAX = 5_000;
/** A faster payment shows that the process is idle again. */
const RECOVERED_MILLISECONDS = 100;

interface Answers {
  /** Milliseconds of each accepted payment. */
  readonly accepted: number[];
  /** Milliseconds of each 503 with Retry-After. */
  readonly refused: number[];
  /** Answers of any other kind, by status; 0 is a connection that broke. */
  readonly others: Map<number, number>;
}

/** Sends one payment, and adds its answer. Resolves to its duration in milliseconds. */
function pay(agent: Agent, port: number, path: string, token: string, answers: Answers): Promise<number> {
  return new Promise((resolve) => {
    const began = performance.now();
    const end = (status: number, hasRetryAfter: boolean) => {
      const milliseconds = performance.now() - began;
      if (status >= 200 && status <= 299) answers.accepted.push(milliseconds);
      else if (status === 503 && hasRetryAfter) answers.refused.push(milliseconds);
      else answers.others.set(status, (answers.others.get(status) ?? 0) + 1);
      resolve(milliseconds);
    };
    const headers = { authorization: `Bearer ${token}` };
    const sending = request({ host: "127.0.0.1", port, path, method: "POST", agent, headers }, (answer) => {
      answer.resume().once("end", () => end(answer.statusCode ?? 0, answer.headers["retry-after"] !== undefined));
    });
    sending.once("error", () => end(0, false)).end();
  });
}

/** Sends payments at a rate, whether or not earlier ones are answered. */
async function flood(side: Listening, perSecond: number, seconds: number, requests: ReturnType<typeof payments>) {
  const answers: Answers = { accepted: [], refused: [], others: new Map() };
  const agent = new Agent({ keepAlive: true, maxSockets: SENT_AT_A_TIME_MAX });
  const waiting = new Set<Promise<number>>();
  const began = performance.now();
  let sent = 0;
  for (let elapsed = 0; elapsed < seconds * 1_000; elapsed = performance.now() - began) {
    for (; sent < (elapsed / 1_000) * perSecond && waiting.size < SENT_AT_A_TIME_MAX; sent++) {
      const { path = "", token = "" } = requests[sent % requests.length] ?? {};
      const payment = pay(agent, side.port, path, token, answers);
      waiting.add(payment);
      void payment.finally(() => waiting.delete(payment));
    }
    await delay(STEP_MILLISECONDS);
  }
  return { answers, agent, sentPerSecond: sent / seconds, rest: () => Promise.all(waiting) };
}

export default async function overload({ node, seconds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const side = await startFunction(database, "order-pay", node);
    const requests = payments(await database.users(USERS));
    await world.load(side, { connections: CONNECTIONS, seconds, requests });
    const { perSecond } = await world.load(side, { connections: CONNECTIONS, seconds, requests });
    const { answers, agent, sentPerSecond, rest } = await flood(
      side,
      OVERLOAD * perSecond,
      seconds * SECONDS_FACTOR,
      requests,
    );
    // The flood ends now; requests in flight are still served.
    const ended = performance.now();
    const [{ path = "", token = "" } = {}] = requests;
    const probes: Answers = { accepted: [], refused: [], others: new Map() };
    let recovery = Number.POSITIVE_INFINITY;
    while (performance.now() - ended < 2 * RECOVERY_MILLISECONDS_MAX) {
      const before = probes.accepted.length;
      const milliseconds = await pay(agent, side.port, path, token, probes);
      if (probes.accepted.length > before && milliseconds <= RECOVERED_MILLISECONDS) {
        recovery = performance.now() - ended;
        break;
      }
    }
    await rest();
    const peak = await memoryPeakMebibytes(side.child.pid ?? 0);
    agent.destroy();
    await side.stop();
    const { accepted, refused, others } = answers;
    const otherAnswers = [...others.values()].reduce((sum, count) => sum + count, 0);
    const own = (what: string, value: number, max?: number): Figure => ({
      what,
      lotus: [value],
      ...(max !== undefined && { targets: [{ of: "lotus" as const, max }] }),
    });
    return [
      own("payments/s that the process can serve, 64 connections", perSecond),
      own("payments/s sent", sentPerSecond),
      own("payments accepted", accepted.length),
      own("payments refused by 503 with Retry-After", refused.length),
      own("other answers and broken connections", otherAnswers, 0),
      ...(refused.length === 0
        ? []
        : [
            own("refusal p50, ms", quantile(refused, 0.5)),
            own("refusal p99, ms", quantile(refused, 0.99), REFUSAL_MILLISECONDS_MAX),
          ]),
      own("accepted payment p99, ms", quantile(accepted, 0.99), ACCEPTED_MILLISECONDS_MAX),
      own("memory peak, MiB", peak, MEMORY_MEBIBYTES_MAX),
      own("recovery after the flood, ms", recovery, RECOVERY_MILLISECONDS_MAX),
    ];
  });
}
