/** One chaos run on a Lotus that it starts itself: load, faults, heal, settle, check. */
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { type Kafka, startKafka } from "../kafka/cluster.ts";
import { startLotus } from "../local/lotus.ts";
import { startPostgres } from "../local/postgres.ts";
import { check } from "./checker.ts";
import { type Fault, inject, SKIPPED, type Target } from "./faults.ts";
import { History, readHistory } from "./history.ts";
import { type Counters, resolveUnknown, runLoad } from "./load.ts";
import { startPostgresProxy } from "./postgres-proxy.ts";
import { randomFrom } from "./random.ts";
import { type Injection, quantile, type Report, type Sample } from "./report.ts";

/** Before the first fault, so that users exist and functions run. */
const WARM_UP_MILLISECONDS = 4_000;
const PAUSE_BETWEEN_FAULTS_MILLISECONDS_MAX = 1_500;
/** The outbox must be empty this long after the last fault. */
const SETTLE_MILLISECONDS_MAX = 60_000;
const TICK_MILLISECONDS = 2_000;
const SAMPLE_MILLISECONDS = 1_000;

export interface ChaosOptions {
  readonly seed: number;
  readonly minutes: number;
  readonly clients: number;
  readonly faults: readonly Fault[];
  readonly kafka: boolean;
  /** Contains the data, the history and the report. */
  readonly folder: string;
  readonly historyFile: string;
  /** Breaks something before the load starts. */
  sabotage?(target: Target): Promise<void>;
  onProgress(line: string): void;
  /** Ends the run early; it heals, settles and checks all the same. */
  readonly interrupted: AbortSignal;
}

/** The superuser of the local Postgres: some faults need more than the owner may do. */
async function superuserUrl(postgresFolder: string, ownerUrl: string): Promise<string> {
  const { superuser } = JSON.parse(await readFile(join(postgresFolder, "passwords.json"), "utf8")) as {
    superuser: string;
  };
  return Object.assign(new URL(ownerUrl), { username: "postgres", password: superuser }).href;
}

/**
 * Runs chaos once.
 * @returns the report, with the violations
 * @throws {Error} a sentence, when Lotus cannot be started
 */
export async function runChaos(options: ChaosOptions): Promise<Report> {
  const { seed, folder, clients, onProgress, interrupted } = options;
  const random = randomFrom(seed);
  const endings: (() => Promise<unknown>)[] = [];
  await mkdir(folder, { recursive: true });
  try {
    const postgresFolder = join(folder, "postgres");
    let postgres = await startPostgres(postgresFolder);
    endings.push(() => postgres.stop());
    const proxy = await startPostgresProxy(() => postgres.port);
    endings.push(() => proxy.stop());
    const throughProxy = new URL(postgres.adminUrl);
    throughProxy.port = String(proxy.port);
    const kafka: Kafka | undefined = options.kafka
      ? await startKafka({ brokers: 3, folder: join(folder, "kafka"), fresh: true, onProgress })
      : undefined;
    if (kafka !== undefined) endings.push(() => kafka.stop());
    const lotus = await startLotus({
      port: 0,
      folder: join(folder, "run"),
      databaseUrl: throughProxy.href,
      ...(kafka !== undefined && { kafka }),
      step: (what, work) => {
        onProgress(what);
        return work();
      },
    });
    endings.push(() => lotus.stop());

    const history = new History(options.historyFile);
    endings.push(async () => history.close());
    const counters: Counters = { operations: 0, refused: 0, unknown: 0, latencies: [], onMovement: [] };
    const target: Target = {
      lotus,
      proxy,
      directUrl: await superuserUrl(postgresFolder, postgres.adminUrl),
      random: random.fork("faults"),
      poison: 0,
      postgres: () => postgres,
      async restartPostgres() {
        postgres = await startPostgres(postgresFolder, [], postgres.port);
      },
    };
    await options.sabotage?.(target);

    const ask = async (text: string): Promise<number> => {
      const client = new Client({ connectionString: postgres.adminUrl, connectionTimeoutMillis: SAMPLE_MILLISECONDS });
      client.on("error", () => undefined);
      try {
        await client.connect();
        return Number((await client.query(text)).rows[0]?.number);
      } catch {
        return -1;
      } finally {
        await client.end().catch(() => undefined);
      }
    };
    const outboxDepth = () => ask("select count(*) as number from events.outbox");

    const samples: Sample[] = [];
    let before = 0;
    let faultNow = "warm-up";
    const injections: Injection[] = [];
    const sampling = setInterval(async () => {
      const latencies = counters.latencies.splice(0);
      const operations = counters.operations - before;
      before = counters.operations;
      const second = Math.round(history.now() / 1e9);
      const outbox = await outboxDepth();
      samples.push({
        second,
        operations,
        p50Milliseconds: quantile(latencies, 0.5) || 0,
        p99Milliseconds: quantile(latencies, 0.99) || 0,
        outbox,
      });
      onProgress(
        `${second} s: ${counters.operations} operations, ${injections.length} faults (${faultNow}), outbox ${outbox < 0 ? "unknown" : outbox}`,
      );
    }, SAMPLE_MILLISECONDS);
    endings.push(async () => clearInterval(sampling));

    const loadEnd = new AbortController();
    const load = runLoad({ url: lotus.url, clients, history, random: random.fork("load"), counters }, loadEnd.signal);
    load.catch(() => undefined);
    await delay(WARM_UP_MILLISECONDS, undefined, { signal: interrupted }).catch(() => undefined);

    const until = performance.now() + options.minutes * 60_000;
    const order: Fault[] = [];
    while (performance.now() < until && !interrupted.aborted && options.faults.length > 0) {
      // Each round injects every kind once, in another order.
      if (order.length === 0)
        order.push(
          ...[...options.faults]
            .map((fault) => [target.random.next(), fault] as const)
            .sort(([a], [b]) => a - b)
            .map(([, fault]) => fault),
        );
      const fault = order.pop() as Fault;
      faultNow = fault.name;
      const from = history.now() / 1e9;
      history.write("nemesis", "invoke", fault.name, {});
      const hadTarget = await inject(fault, target, interrupted);
      if (fault.name === "poison-event" && hadTarget) target.poison++;
      history.write("nemesis", hadTarget ? "ok" : "fail", fault.name, {});
      const to = history.now() / 1e9;
      if (hadTarget) {
        const injection = { name: fault.name, from, to, recoveryMilliseconds: undefined as number | undefined };
        injections.push(injection);
        counters.onMovement.push(() => {
          injection.recoveryMilliseconds = history.now() / 1e6 - to * 1_000;
        });
      }
      await delay(target.random.between(0, PAUSE_BETWEEN_FAULTS_MILLISECONDS_MAX), undefined, {
        signal: interrupted,
      }).catch(() => undefined);
    }

    faultNow = "no fault, settling";
    loadEnd.abort();
    const tokens = await load;
    const healedAt = performance.now();
    await resolveUnknown(readHistory(options.historyFile), tokens, { url: lotus.url, history });
    while ((await outboxDepth()) !== 0 && performance.now() - healedAt < 2 * SETTLE_MILLISECONDS_MAX) {
      await lotus.tick().catch(() => undefined);
      await delay(TICK_MILLISECONDS);
    }
    const settledMilliseconds = performance.now() - healedAt;
    clearInterval(sampling);

    onProgress("Checking the history and the database");
    const database = new Client({ connectionString: postgres.adminUrl });
    await database.connect();
    const { violations, checked } = await check(
      readHistory(options.historyFile),
      database,
      settledMilliseconds,
      target.poison,
      SETTLE_MILLISECONDS_MAX,
    ).finally(() => database.end());
    return {
      seed,
      minutes: options.minutes,
      clients,
      kafka: options.kafka,
      operations: counters.operations,
      refused: counters.refused,
      unknown: counters.unknown,
      settledMilliseconds,
      injections,
      skipped: SKIPPED,
      samples,
      checked,
      violations,
    };
  } finally {
    for (const end of endings.reverse())
      await end().catch((error: Error) => onProgress(`Not stopped: ${error.message}`));
  }
}
