/** The load of the console: payments at a fixed rate. Each is repeated with its key until it is answered, as a good client does. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Refusal } from "../cli/errors.ts";
import type { DatabaseFigures, LoadPoint } from "./protocol.ts";

const USERS = 8;
const DEPOSIT = 1_000_000;
const TICK_MILLISECONDS = 50;
const SECOND_MILLISECONDS = 1_000;
const ANSWER_MILLISECONDS_MAX = 20_000;
const REPEAT_MILLISECONDS = 250;
const REPEAT_MILLISECONDS_MAX = 60_000;
/** Payments that wait for an answer. A load beyond what this machine serves stops growing there. */
const WAITING_PAYMENTS_MAX = 1_000;
const DRAIN_MILLISECONDS_MAX = 120_000;
const DRAIN_STEP_MILLISECONDS = 200;

/** The effect of a load. */
export interface LoadResult {
  readonly answered: number;
  /** Payments that needed more than one attempt. */
  readonly repeated: number;
  readonly unanswered: number;
  readonly outboxPeak: number;
  /** From the end of the load, or of the fault, to the empty outbox. Undefined: it did not drain. */
  readonly drainedMilliseconds: number | undefined;
  readonly trialBalance: string;
}

export interface LoadOptions {
  /** The address of the gateway. */
  readonly url: string;
  readonly perSecond: number;
  readonly seconds: number;
  /** Works while the load runs. The load continues until the work has ended. */
  readonly meanwhile?: (stop: AbortSignal) => Promise<void>;
  figures(): Promise<DatabaseFigures>;
  onPoints(points: readonly LoadPoint[]): void;
  readonly stop: AbortSignal;
}

async function call(url: string, path: string, headers: Record<string, string>, body?: unknown) {
  const answer = await fetch(url + path, {
    method: "POST",
    headers: { ...headers, ...(body !== undefined && { "content-type": "application/json" }) },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    signal: AbortSignal.timeout(ANSWER_MILLISECONDS_MAX),
  });
  return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
}

/** Sends payments through the gateway of a run. Keeps its users between two loads. */
export class Load {
  #tokens: string[] = [];

  async #users(url: string, stop: AbortSignal): Promise<string[]> {
    while (this.#tokens.length < USERS && !stop.aborted) {
      const user = { email: `load-${randomUUID()}@example.com`, password: randomUUID() };
      const registered = await call(url, "/profile/register", {}, user);
      if (registered.status !== 201) throw new Refusal(`A registration was answered ${registered.status}.`);
      const { body } = await call(url, "/profile/login", {}, user);
      const authorization = `Bearer ${body.token}`;
      await this.#untilAnswered(url, `/billing/add-money?money=${DEPOSIT}`, authorization, stop);
      this.#tokens.push(authorization);
    }
    return this.#tokens;
  }

  /** Calls with one key until there is an answer below 500 that is not 409 or 429. Returns the number of attempts; 0 without an answer. */
  async #untilAnswered(url: string, path: string, authorization: string, stop: AbortSignal): Promise<number> {
    const headers = { authorization, "idempotency-key": randomUUID() };
    const until = performance.now() + REPEAT_MILLISECONDS_MAX;
    for (let attempt = 1; performance.now() < until && !stop.aborted; attempt++) {
      const status = await call(url, path, headers).then(
        (answer) => answer.status,
        // A connection that ended: the key makes the repeat safe.
        () => 503,
      );
      if (status === 401) {
        this.#tokens = [];
        return 0;
      }
      if (status < 500 && status !== 409 && status !== 429) return attempt;
      await delay(REPEAT_MILLISECONDS);
    }
    return 0;
  }

  /** Runs a load and waits until the outbox is empty. */
  async run({ url, perSecond, seconds, meanwhile, figures, onPoints, stop }: LoadOptions): Promise<LoadResult> {
    const users = await this.#users(url, stop);
    const waiting = new Set<Promise<void>>();
    const points: LoadPoint[] = [];
    let [answered, repeated, unanswered, outboxPeak, sent] = [0, 0, 0, 0, 0];
    let now = { answered: 0, failed: 0 };
    let depth = 0;
    const pay = async () => {
      const user = users[sent++ % users.length] ?? "";
      const attempts = await this.#untilAnswered(url, "/order/pay?idSubscription=1", user, stop);
      if (attempts === 0) {
        unanswered++;
        now.failed++;
        return;
      }
      answered++;
      now.answered++;
      if (attempts > 1) {
        repeated++;
        now.failed++;
      }
    };
    const began = performance.now();
    const second = setInterval(() => {
      points.push({ second: points.length + 1, ...now, outboxDepth: depth });
      now = { answered: 0, failed: 0 };
      onPoints([...points]);
      void figures().then(
        ({ outboxDepth }) => {
          depth = outboxDepth;
          outboxPeak = Math.max(outboxPeak, depth);
        },
        // The fault may have cut the database; the chart keeps the last depth.
        () => undefined,
      );
    }, SECOND_MILLISECONDS);
    try {
      let faulty = meanwhile !== undefined;
      const fault = meanwhile?.(stop).finally(() => {
        faulty = false;
      });
      fault?.catch(() => undefined);
      let begun = 0;
      while ((performance.now() - began < seconds * SECOND_MILLISECONDS || faulty) && !stop.aborted) {
        // By the clock: a tick of a busy machine comes late.
        const due = ((performance.now() - began) * perSecond) / SECOND_MILLISECONDS;
        for (; begun + 1 <= due; begun++) {
          if (waiting.size >= WAITING_PAYMENTS_MAX) continue;
          const payment = pay().finally(() => waiting.delete(payment));
          waiting.add(payment);
        }
        await delay(TICK_MILLISECONDS);
      }
      await fault;
      const ended = performance.now();
      await Promise.all(waiting);
      let last: DatabaseFigures | undefined;
      while (performance.now() - ended < DRAIN_MILLISECONDS_MAX && !stop.aborted) {
        last = await figures().catch(() => undefined);
        if (last?.outboxDepth === 0) break;
        await delay(DRAIN_STEP_MILLISECONDS);
      }
      const drained = last?.outboxDepth === 0 ? performance.now() - ended : undefined;
      const trialBalance = (last ?? (await figures())).trialBalance;
      return { answered, repeated, unanswered, outboxPeak, drainedMilliseconds: drained, trialBalance };
    } finally {
      clearInterval(second);
      onPoints([...points, { second: points.length + 1, ...now, outboxDepth: 0 }]);
    }
  }
}
