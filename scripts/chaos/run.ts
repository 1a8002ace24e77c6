/** One chaos run: load, faults, heal, settle, check; on a Lotus that it starts itself, or on an installation that exists. */
import { spawnSync } from "node:child_process";
import { appendFileSync, writeFileSync } from "node:fs";
import { chmod, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { buildFunctions, endEsbuild } from "../build/bundles.ts";
import { readPasswords, rolesOf } from "../database/roles.ts";
import { asAdmin } from "../kafka/admin.ts";
import { type PgBouncer, startPgBouncer } from "../local/pgbouncer.ts";
import { startPostgres } from "../local/postgres.ts";
import { ROOT } from "../project/paths.ts";
import { ensureSecrets } from "../secrets/local.ts";
import { check, describeOperations } from "./checker.ts";
import { type Fault, inject, MAKE_OVERDUE, type Part, partsOf, type Target } from "./faults.ts";
import { History, readHistory } from "./history.ts";
import { startSecuredKafka } from "./kafka.ts";
import { type Counters, REPEAT_MILLISECONDS_MAX, resolveUnknown, runLoad } from "./load.ts";
import { startLotusProcess } from "./lotus-process.ts";
import { startPostgresProxy } from "./postgres-proxy.ts";
import { type Random, randomFrom } from "./random.ts";
import { type Injection, quantile, type Report, type Sample } from "./report.ts";
import { applySabotage, type Sabotage } from "./sabotage.ts";

/** The time before the first fault, so that users exist and functions run. */
const WARM_UP_MILLISECONDS = 4_000;
const PAUSE_BETWEEN_FAULTS_MILLISECONDS_MAX = 1_000;
/** The next round begins when so many faults of the round wait at most. */
const NEXT_ROUND_FAULTS_MAX = 6;
/** A short run injects each kind of fault once, in little time. */
const SHORT_PAUSE_BETWEEN_FAULTS_MILLISECONDS_MAX = 100;
/** How often a quiet phase without faults begins, and how long it lasts: longer than Lotus may need to recover. */
const QUIET_EVERY_MILLISECONDS = 60_000;
const QUIET_MILLISECONDS = 14_000;
/** The outbox must be empty this long after the last fault. */
const SETTLE_MILLISECONDS_MAX = 60_000;
/** A run that is at most this long does not wait until an event is overdue: it makes the events overdue. */
const SHORT_RUN_MINUTES = 0.5;
const TICK_MILLISECONDS = 2_000;
const SHORT_TICK_MILLISECONDS = 250;
const SAMPLE_MILLISECONDS = 1_000;
/** A run that waits for its operations ends this long after its minutes. */
const LATE_MILLISECONDS_MAX = 60_000;
const BUSY_GROUP_MILLISECONDS = 50;
/** Half an hour of entries and the write-ahead log of Postgres fit. */
const SMALL_DISK_MEGABYTES = 1_536;
/** A broken Lotus may violate an invariant in each of thousands of answers. */
const VIOLATIONS_DESCRIBED_MAX = 20;
/** The functions do not notice this module until a fault sends its signal. */
const CLOCK = join(ROOT, "scripts", "chaos", "clock.cjs");
const ALL_PARTS: readonly Part[] = [
  "processes",
  "network",
  "server",
  "superuser",
  "database",
  "bus",
  "kafka",
  "pooler",
  "small disk",
];
const WHY_MISSING: Readonly<Record<Part, string>> = {
  processes: "needs a Lotus that the run starts itself",
  network: "needs a Lotus that the run starts itself",
  server: "needs a Postgres that the run starts itself",
  superuser: "needs a superuser of the database",
  database: "",
  bus: "needs the local event bus; a run without --kafka has it",
  kafka: "needs --kafka",
  pooler: "needs PgBouncer and --pooler",
  "small disk": "needs root, who may mount a small filesystem, and --disk",
};

/** Describes the oldest events that wait, for the log of the run. */
const UNSETTLED = `select id, topic, subject, time, awaiting, attempts, attempted_at from events.outbox order by time limit 50`;

/** Describes the consumer groups of Lotus in Kafka, for the log of the run. */
async function groupsOf({ kafka, lotus }: Target): Promise<string[]> {
  const ids = (lotus?.sources ?? []).map(({ consumerGroup }) => consumerGroup);
  return asAdmin(kafka?.bootstrap ?? [], async (admin) => {
    const { groups } = await admin.describeGroups(ids);
    return groups.map(
      ({ groupId, state, members }) =>
        `${groupId} is ${state}, with ${members.map(({ memberId }) => memberId).join(", ")}`,
    );
  }).catch((error: Error) => [error.message]);
}

/** A database that exists. */
export interface GivenDatabase {
  /** Connects as the owner. */
  readonly adminUrl: string;
  /** Connects as the superuser, for faults that need one. */
  readonly superuserUrl?: string;
}

export interface ChaosOptions {
  readonly seed: number;
  readonly minutes: number;
  readonly clients: number;
  readonly faults: readonly Fault[];
  /** Faults that are active at the same time. */
  readonly overlap: number;
  readonly kafka: boolean;
  /** Put the data of Postgres on a small filesystem, so that it can be full. Needs root. */
  readonly smallDisk?: boolean;
  /** Put a PgBouncer between the functions and Postgres. */
  readonly pooler?: boolean;
  /** The gateway of an installation that exists, and its database. */
  readonly existing?: { readonly url: string; readonly database: GivenDatabase };
  /** A database for the Lotus of this run, in a server that the run does not end. */
  readonly database?: GivenDatabase;
  /** Contains the data, the history and the report. */
  readonly folder: string;
  readonly historyFile: string;
  /** Receives the lines of the functions, the news of Lotus, and the faults, each with its time. */
  readonly logFile: string;
  /** Breaks something before the load starts. */
  readonly sabotage?: Sabotage;
  /** The run lasts until this many operations have an outcome and each kind of fault was injected, also after its minutes. */
  readonly operationsMin?: number;
  readonly repeatMillisecondsMax?: number;
  readonly settleMillisecondsMax?: number;
  /** The functions in dist/ are up to date. */
  readonly built?: boolean;
  onProgress(line: string): void;
  /** Ends the run early. It still heals, settles and checks. */
  readonly interrupted: AbortSignal;
}

/** The superuser of the local Postgres: some faults need more than the owner may do. */
async function superuserUrl(postgresFolder: string, ownerUrl: string): Promise<string> {
  const { superuser } = JSON.parse(await readFile(join(postgresFolder, "passwords.json"), "utf8")) as {
    superuser: string;
  };
  return Object.assign(new URL(ownerUrl), { username: "postgres", password: superuser }).href;
}

interface World {
  /** The address of the gateway. */
  readonly url: string;
  readonly adminUrl: string;
  readonly target: Target;
}

/** Mounts a small filesystem on a folder. */
async function mountSmallDisk(folder: string, endings: (() => Promise<unknown>)[]): Promise<void> {
  await mkdir(folder, { recursive: true });
  const { status, stderr } = spawnSync("mount", [
    "-t",
    "tmpfs",
    "-o",
    `size=${SMALL_DISK_MEGABYTES}m`,
    "tmpfs",
    folder,
  ]);
  if (status !== 0) throw new Error(`A small filesystem cannot be mounted on ${folder}: ${stderr}`);
  endings.push(async () => spawnSync("umount", ["-l", folder]));
  await chmod(folder, 0o755);
}

/** Starts a PgBouncer between the functions of a folder and a database. */
async function startPooler(runFolder: string, databaseUrl: string): Promise<PgBouncer> {
  const { port, pathname, username, password } = new URL(databaseUrl);
  const secrets = join(runFolder, "secrets");
  await ensureSecrets(secrets, databaseUrl);
  const passwords = await readPasswords(secrets);
  const roles = [...rolesOf(pathname.slice(1))].map(([service, role]) => [role, passwords[service] ?? ""] as const);
  return startPgBouncer(Number(port), new Map([...roles, [username, password]]));
}

/** Starts Postgres, a proxy in front of it, Kafka and Lotus. */
async function startWorld(options: ChaosOptions, random: Random, endings: (() => Promise<unknown>)[]): Promise<World> {
  const { folder, onProgress, existing } = options;
  const poison = { sent: new Set<string>(), acknowledged: new Set<string>() };
  if (existing !== undefined) {
    const { adminUrl, superuserUrl: superuser } = existing.database;
    const target: Target = { directUrl: superuser ?? adminUrl, isSuperuser: superuser !== undefined, random, poison };
    return { url: existing.url, adminUrl, target };
  }
  const postgresFolder = join(folder, "postgres");
  if (options.smallDisk) await mountSmallDisk(postgresFolder, endings);
  let postgres = options.database === undefined ? await startPostgres(postgresFolder) : undefined;
  endings.push(async () => postgres?.stop());
  const adminUrl = options.database?.adminUrl ?? postgres?.adminUrl ?? "";
  const port = Number(new URL(adminUrl).port);
  const proxy = await startPostgresProxy(() => port);
  endings.push(() => proxy.stop());
  const kafka = options.kafka ? await startSecuredKafka(join(folder, "kafka"), onProgress) : undefined;
  if (kafka !== undefined) endings.push(() => kafka.stop());
  const runFolder = join(folder, "run");
  const databaseUrl = Object.assign(new URL(adminUrl), { port: String(proxy.port) }).href;
  const pooler = options.pooler ? await startPooler(runFolder, databaseUrl) : undefined;
  if (pooler !== undefined) endings.push(() => pooler.stop());
  if (!options.built) {
    onProgress("Building the functions");
    await buildFunctions().finally(endEsbuild);
  }
  onProgress("Starting Lotus");
  const lotus = await startLotusProcess(
    {
      port: 0,
      folder: runFolder,
      databaseUrl,
      kafka: kafka !== undefined,
      built: true,
      functionOptions: ["--require", CLOCK],
      logFile: options.logFile,
      ...(pooler !== undefined && { pooler: `postgres://127.0.0.1:${pooler.port}` }),
    },
    { ...kafka?.environment, ...(pooler !== undefined && { DATABASE_PREPARE: "false" }) },
  );
  endings.push(() => lotus.stop());
  const superuser =
    postgres === undefined ? options.database?.superuserUrl : await superuserUrl(postgresFolder, adminUrl);
  return {
    url: lotus.url,
    adminUrl,
    target: {
      lotus,
      proxy,
      directUrl: superuser ?? adminUrl,
      isSuperuser: superuser !== undefined,
      ...(kafka !== undefined && { kafka }),
      ...(pooler !== undefined && { pooler }),
      secretsFolder: join(runFolder, "secrets"),
      ...(options.smallDisk && { smallDisk: postgresFolder }),
      random,
      ...(postgres !== undefined && {
        server: {
          postgres: () => postgres as NonNullable<typeof postgres>,
          async restart() {
            postgres = await startPostgres(postgresFolder, [], port);
          },
        },
      }),
      poison,
    },
  };
}

/** Injects faults until the time is over, several at a time. Calls `injected` for each that had a target. */
async function injectFaults(
  options: ChaosOptions,
  faults: readonly Fault[],
  target: Target,
  history: History,
  counters: Counters,
  tell: {
    began(name: string): void;
    ended(name: string): void;
    injected(name: string, from: number, to: number): void;
  },
): Promise<void> {
  const { interrupted, operationsMin = 0 } = options;
  const rest = new Set(operationsMin === 0 ? [] : faults.map(({ name }) => name));
  const began = performance.now();
  const until = began + options.minutes * 60_000;
  const isLate = () => performance.now() >= until + LATE_MILLISECONDS_MAX;
  let failed = false;
  const isOver = () =>
    failed ||
    interrupted.aborted ||
    (performance.now() >= until && ((counters.operations >= operationsMin && rest.size === 0) || isLate()));
  const isQuiet = () =>
    (performance.now() - began) % QUIET_EVERY_MILLISECONDS > QUIET_EVERY_MILLISECONDS - QUIET_MILLISECONDS;
  const pause = (milliseconds: number) =>
    delay(milliseconds, undefined, { signal: interrupted }).catch(() => undefined);
  const isShort = options.minutes <= SHORT_RUN_MINUTES;
  const pauseMax = isShort ? SHORT_PAUSE_BETWEEN_FAULTS_MILLISECONDS_MAX : PAUSE_BETWEEN_FAULTS_MILLISECONDS_MAX;
  const busy = new Set<string>();
  const order: Fault[] = [];
  /** Adds every kind once, in a random order; in a run that waits for each kind, only the missing ones. */
  const addRound = () =>
    order.push(
      ...faults
        .filter((fault) => rest.size === 0 || (rest.has(fault.name) && !order.includes(fault)))
        .map((fault) => [target.random.next(), fault] as const)
        .sort(([a], [b]) => a - b)
        .map(([, fault]) => fault),
    );
  const next = (): Fault | undefined => {
    const find = () => order.findIndex(({ group }) => !busy.has(group));
    // The last faults of a round may all belong to a busy group. Each kind is injected about as often as the others.
    if (find() < 0 && order.length < NEXT_ROUND_FAULTS_MAX) addRound();
    const index = find();
    return index < 0 ? undefined : order.splice(index, 1)[0];
  };
  const work = async () => {
    while (!isOver()) {
      const fault = isQuiet() ? undefined : next();
      if (fault === undefined) {
        await pause(BUSY_GROUP_MILLISECONDS);
        continue;
      }
      busy.add(fault.group);
      tell.began(fault.name);
      const from = history.now() / 1e9;
      history.write("nemesis", "invoke", fault.name, {});
      try {
        const hadTarget = await inject(fault, target, interrupted);
        history.write("nemesis", hadTarget ? "ok" : "fail", fault.name, {});
        if (hadTarget) {
          tell.injected(fault.name, from, history.now() / 1e9);
          rest.delete(fault.name);
        }
      } catch (error) {
        failed = true;
        throw error;
      } finally {
        busy.delete(fault.group);
        tell.ended(fault.name);
      }
      await pause(target.random.between(0, pauseMax));
    }
  };
  if (faults.length === 0) while (!isOver()) await pause(BUSY_GROUP_MILLISECONDS);
  await Promise.all(Array.from({ length: options.overlap }, work));
}

/**
 * Runs chaos once.
 * @returns the report, with the violations
 * @throws {Error} a sentence, when Lotus cannot be started or a fault cannot be healed
 */
export async function runChaos(options: ChaosOptions): Promise<Report> {
  const { seed, folder, clients, onProgress, interrupted } = options;
  const { settleMillisecondsMax = SETTLE_MILLISECONDS_MAX, repeatMillisecondsMax = REPEAT_MILLISECONDS_MAX } = options;
  const random = randomFrom(seed);
  const endings: (() => Promise<unknown>)[] = [];
  await mkdir(folder, { recursive: true });
  writeFileSync(options.logFile, "");
  const record = (line: string) => appendFileSync(options.logFile, `${new Date().toISOString()} chaos: ${line}\n`);
  try {
    const { url, adminUrl, target } = await startWorld(options, random.fork("faults"), endings);
    const { lotus } = target;
    const history = new History(options.historyFile);
    endings.push(async () => history.close());
    const counters: Counters = { operations: 0, refused: 0, unknown: 0, latencies: [], onMovement: [] };
    if (options.sabotage !== undefined) {
      const goOn = await applySabotage(options.sabotage, target.directUrl);
      endings.push(async () => goOn());
    }
    const parts = partsOf(target);
    const possible = options.faults.filter(({ needs }) => parts.has(needs));
    const missing = ALL_PARTS.filter((part) => !parts.has(part));
    const skipped = options.faults.flatMap(({ name, needs }) =>
      missing.includes(needs) ? [[name, WHY_MISSING[needs]] as const] : [],
    );

    const ask = async (text: string): Promise<Record<string, unknown>[] | undefined> => {
      const client = new Client({ connectionString: adminUrl, connectionTimeoutMillis: SAMPLE_MILLISECONDS });
      client.on("error", () => undefined);
      try {
        await client.connect();
        return (await client.query(text)).rows;
      } catch {
        return undefined;
      } finally {
        await client.end().catch(() => undefined);
      }
    };
    const outboxDepth = async () =>
      Number((await ask("select count(*) as number from events.outbox"))?.[0]?.number ?? -1);
    // Dead letters from before this run are not of this run.
    const before = await ask("select coalesce(attributes ->> 'id', event_key::text) as event from events.dead_letters");
    for (const { event } of before ?? []) target.poison.sent.add(String(event));

    const samples: Sample[] = [];
    let counted = 0;
    const active: string[] = [];
    let phase = "warm-up";
    const injections: Injection[] = [];
    const sampling = setInterval(async () => {
      const latencies = counters.latencies.splice(0);
      const operations = counters.operations - counted;
      counted = counters.operations;
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
        `${second} s: ${counters.operations} operations, ${injections.length} faults (${active.join(", ") || phase}), outbox ${outbox < 0 ? "unknown" : outbox}`,
      );
    }, SAMPLE_MILLISECONDS);
    endings.push(async () => clearInterval(sampling));

    const loadEnd = new AbortController();
    endings.push(async () => loadEnd.abort());
    const loadOptions = { url, clients, history, random: random.fork("load"), counters, repeatMillisecondsMax };
    const load = runLoad(loadOptions, loadEnd.signal);
    load.catch(() => undefined);
    // A run that counts its operations needs a user for each client before the first fault, and no time.
    if (options.operationsMin === undefined)
      await delay(WARM_UP_MILLISECONDS, undefined, { signal: interrupted }).catch(() => undefined);
    else while (counters.operations < 2 * clients && !interrupted.aborted) await delay(BUSY_GROUP_MILLISECONDS);
    phase = "no fault";
    await injectFaults(options, possible, target, history, counters, {
      began(name) {
        record(`${name} begins`);
        active.push(name);
      },
      ended(name) {
        record(`${name} has ended`);
        active.splice(active.indexOf(name), 1);
      },
      injected(name, from, to) {
        const injection = { name, from, to, recoveryMilliseconds: undefined as number | undefined };
        injections.push(injection);
        counters.onMovement.push(() => {
          injection.recoveryMilliseconds = history.now() / 1e6 - to * 1_000;
        });
      },
    });

    phase = "settling";
    record("settles");
    loadEnd.abort();
    const users = await load;
    const healedAt = performance.now();
    await resolveUnknown(readHistory(options.historyFile), users, loadOptions);
    const isShort = options.minutes <= SHORT_RUN_MINUTES;
    while ((await outboxDepth()) !== 0 && performance.now() - healedAt < settleMillisecondsMax) {
      if (isShort) await ask(MAKE_OVERDUE);
      await lotus?.tick().catch(() => undefined);
      await delay(isShort ? SHORT_TICK_MILLISECONDS : TICK_MILLISECONDS);
    }
    const settledMilliseconds = performance.now() - healedAt;
    clearInterval(sampling);
    for (const row of (await ask(UNSETTLED)) ?? []) record(`unsettled: ${JSON.stringify(row)}`);
    if (target.kafka !== undefined) for (const group of await groupsOf(target)) record(`group: ${group}`);

    onProgress("Checking the history and the database");
    const database = new Client({ connectionString: adminUrl });
    await database.connect();
    const entries = readHistory(options.historyFile);
    const { violations, checked } = await check(
      entries,
      database,
      settledMilliseconds,
      target.poison,
      settleMillisecondsMax + TICK_MILLISECONDS,
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
      skipped: Object.fromEntries(skipped),
      samples,
      checked,
      violations: violations.map((violation, index) => ({
        ...violation,
        operations: index < VIOLATIONS_DESCRIBED_MAX ? describeOperations(entries, violation) : [],
      })),
    };
  } finally {
    for (const end of endings.reverse())
      await end().catch((error: Error) => onProgress(`Not stopped: ${error.message}`));
  }
}
