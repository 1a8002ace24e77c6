/** The faults: each has a name, a duration and a heal. */
import { randomUUID } from "node:crypto";
import { rm, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import { asAdmin } from "../kafka/admin.ts";
import { createTopics } from "../kafka/topics.ts";
import type { PgBouncer } from "../local/pgbouncer.ts";
import type { Postgres } from "../local/postgres.ts";
import { sendSignal } from "../process/child.ts";
import { rotateKeys } from "../secrets/keys.ts";
import { joinGroup } from "./group-member.ts";
import type { SecuredKafka } from "./kafka.ts";
import type { LotusProcess } from "./lotus-process.ts";
import type { PostgresProxy } from "./postgres-proxy.ts";
import type { Random } from "./random.ts";

/** Another fault must not block the connection of a fault to the database. */
const CONNECT_MILLISECONDS_MAX = 5_000;
/** A heal is repeated until it succeeds: another fault may have ended what it needs. */
const HEAL_MILLISECONDS_MAX = 60_000;
const HEAL_PAUSE_MILLISECONDS = 200;
/** The SQLSTATE of a transaction that Postgres ended because of a deadlock. */
const DEADLOCK_DETECTED = "40P01";
const EVENTS_ON_THEIR_WAY_MAX = 20;
/** More than Kafka and the event bus accept as one record. */
const LARGE_RECORD_BYTES = 1_300_000;
const FILLER_BYTES = 1 << 20;

/** A part of an installation that faults act on. An existing installation offers the database only. */
export type Part =
  | "processes"
  | "network"
  | "server"
  | "superuser"
  | "database"
  | "bus"
  | "kafka"
  | "pooler"
  | "small disk";

/** Dead letters that the faults cause. */
export interface Poison {
  /** Ids of events that may be in the dead letters. */
  readonly sent: Set<string>;
  /** Ids of events that must be there. */
  readonly acknowledged: Set<string>;
}

export interface Target {
  /** Missing for an existing installation. */
  readonly lotus?: LotusProcess;
  readonly proxy?: PostgresProxy;
  /** The URL of Postgres itself, without the proxy: the superuser when there is one, else the owner. */
  readonly directUrl: string;
  readonly isSuperuser: boolean;
  readonly kafka?: SecuredKafka;
  /** A PgBouncer between the functions and Postgres. */
  readonly pooler?: PgBouncer;
  /** The folder of the keys that sign tokens. */
  readonly secretsFolder?: string;
  /** A folder on the filesystem of the database, when that filesystem is small and belongs to this run. */
  readonly smallDisk?: string;
  readonly random: Random;
  /** The server, when this run may end it. */
  readonly server?: {
    /** The server process. It changes when a fault replaces the server. */
    postgres(): Postgres;
    /** Starts Postgres again at its port after a fault has ended it. */
    restart(): Promise<void>;
  };
  readonly poison: Poison;
}

/** Returns the parts that a target offers. */
export function partsOf(target: Target): Set<Part> {
  const { lotus, proxy, server, isSuperuser, kafka, pooler, smallDisk } = target;
  const offered: [Part, boolean][] = [
    ["processes", lotus !== undefined],
    ["network", proxy !== undefined],
    ["server", server !== undefined],
    ["superuser", isSuperuser],
    ["database", true],
    ["bus", lotus !== undefined && kafka === undefined],
    ["kafka", kafka !== undefined],
    ["pooler", pooler !== undefined],
    ["small disk", smallDisk !== undefined],
  ];
  return new Set(offered.filter(([, isOffered]) => isOffered).map(([part]) => part));
}

/** Two faults of one group do not overlap, because one would undo or prevent the other. */
type Group = "processes" | "network" | "database" | "events" | "kafka";

export interface Fault {
  readonly name: string;
  /** The effect of the fault, for the report. */
  readonly summary: string;
  readonly needs: Part;
  readonly group: Group;
  /** The duration of the fault, in milliseconds. 0: the fault has no duration. */
  readonly milliseconds: number;
  /** Begins the fault. Resolves to what heals it. Resolves to undefined when the fault has no target, such as a running process. */
  begin(target: Target): Promise<(() => Promise<void>) | undefined>;
}

const healed = async () => undefined;

async function withDatabase<T>(url: string, work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: CONNECT_MILLISECONDS_MAX });
  client.on("error", () => undefined);
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Locks rows in a transaction. Returns the function that ends it. */
async function lockRows(url: string, text: string): Promise<() => Promise<void>> {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: CONNECT_MILLISECONDS_MAX });
  client.on("error", () => undefined);
  const end = () => client.end().catch(() => undefined);
  await client.connect();
  try {
    await client.query("begin");
    await client.query(text);
  } catch (error) {
    await end();
    throw error;
  }
  return end;
}

const nameOf = (url: string) => decodeURIComponent(new URL(url).pathname.slice(1));
const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`;

/** Ends every session of the database except the one that asks. */
const TERMINATE = `select pg_terminate_backend(pid) from pg_stat_activity
  where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'`;

/** Changes a setting of the database, ends its sessions, and resolves to what resets the setting. */
async function configure(url: string, set: string, reset: string): Promise<() => Promise<void>> {
  const database = quoted(nameOf(url));
  const change = (text: string) =>
    withDatabase(url, async (client) => {
      await client.query("set default_transaction_read_only = off");
      await client.query(`alter database ${database} ${text}`);
      await client.query(TERMINATE);
    });
  await change(set);
  return () => change(reset);
}

const lotusOf = ({ lotus }: Target): LotusProcess => {
  if (lotus === undefined) throw new Error("This fault needs a Lotus that the run has started.");
  return lotus;
};

const everyProcess = () => true;
const isTrigger = (name: string) => /^(?:notification-store|billing-open-account|events-)/.test(name);
const isReader = (name: string) => name === "notification";

/** The running processes of functions. */
async function runningFunctions(target: Target, matches: (name: string) => boolean) {
  return (await lotusOf(target).functions()).filter(({ name }) => matches(name));
}

const kill =
  (matches: (name: string) => boolean, all = false): Fault["begin"] =>
  async (target) => {
    const running = await runningFunctions(target, matches);
    if (running.length === 0) return undefined;
    for (const fn of all ? running : [target.random.pick(running)]) sendSignal(fn.pid, "SIGKILL");
    return healed;
  };

/** Sends a signal to a function, and another one that ends its effect. */
const disturbFunction =
  (matches: (name: string) => boolean, begins: NodeJS.Signals, ends: NodeJS.Signals): Fault["begin"] =>
  async (target) => {
    const running = await runningFunctions(target, matches);
    if (running.length === 0) return undefined;
    const fn = target.random.pick(running);
    sendSignal(fn.pid, begins);
    return async () => sendSignal(fn.pid, ends);
  };

const disturb =
  (disturbanceOf: (random: Random) => Parameters<PostgresProxy["disturb"]>[0]): Fault["begin"] =>
  async ({ proxy, random }) => {
    proxy?.disturb(disturbanceOf(random));
    return async () => proxy?.disturb({ kind: "none" });
  };

/** Sends an event to the inner address, as a source would. Returns whether the function acknowledged it. */
async function deliver(
  target: Target,
  subscriber: string,
  attributes: Readonly<Record<string, string>>,
  data: string,
): Promise<boolean> {
  const headers = Object.fromEntries(Object.entries(attributes).map(([name, value]) => [`ce-${name}`, value]));
  const answer = await fetch(`${lotusOf(target).insideUrl}/${subscriber}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: data,
    signal: AbortSignal.timeout(CONNECT_MILLISECONDS_MAX),
  }).catch(() => undefined);
  await answer?.arrayBuffer().catch(() => undefined);
  return answer?.ok ?? false;
}

interface OutboxRow {
  readonly envelope: { readonly event: Readonly<Record<string, unknown>> };
  readonly awaiting: readonly string[];
}

/** Reads the events that are on their way now. Returns an empty list while another fault makes the database unavailable. */
function eventsOnTheirWay({ directUrl }: Target): Promise<OutboxRow[]> {
  return withDatabase(directUrl, async (client) => {
    const { rows } = await client.query(
      "select events.envelope(o) as envelope, o.awaiting from events.outbox o limit $1",
      [EVENTS_ON_THEIR_WAY_MAX],
    );
    return rows as OutboxRow[];
  }).catch(() => []);
}

async function deliverAll(target: Target, events: readonly OutboxRow[], times: number): Promise<void> {
  for (const { envelope, awaiting } of events) {
    const { data, ...attributes } = envelope.event;
    // At the same time, so that a reader, the source and the duplicates change the same row.
    for (const subscriber of awaiting)
      await Promise.all(
        Array.from({ length: times }, () =>
          deliver(target, subscriber, attributes as Record<string, string>, JSON.stringify(data)),
        ),
      );
  }
}

const become =
  (state: Parameters<LotusProcess["disturbBus"]>[0]): Fault["begin"] =>
  async (target) => {
    await lotusOf(target).disturbBus(state);
    return () => lotusOf(target).disturbBus("deliver");
  };

/** Makes every event of the outbox overdue. It locks the rows in the order in which readers settle them. */
export const MAKE_OVERDUE = `with waiting as materialized (select id from events.outbox order by time, id for update)
  update events.outbox o set attempted_at = '-infinity' from waiting where o.id = waiting.id`;

const killBrokers =
  (all: boolean): Fault["begin"] =>
  async ({ kafka, random }) => {
    const indexes = [...(kafka?.bootstrap.keys() ?? [])];
    const killed = all ? indexes : [random.pick(indexes)];
    for (const index of killed) kafka?.kill(index);
    return async () => void (await Promise.all(killed.map((index) => kafka?.restart(index))));
  };

/** Joins a consumer group of Lotus beside its source. */
const rebalance =
  (commits: boolean): Fault["begin"] =>
  async (target) => {
    const { topics, consumerGroup } = target.random.pick(lotusOf(target).sources);
    const member = await joinGroup(target.kafka?.bootstrap ?? [], consumerGroup, topics, commits);
    return () => member.leave();
  };

/** Fills the filesystem of the database. */
async function fillDisk({ smallDisk = "" }: Target): Promise<() => Promise<void>> {
  const filler = join(smallDisk, "filler");
  const { bavail, bsize } = await statfs(smallDisk);
  const bytes = Buffer.alloc(FILLER_BYTES);
  for (let left = bavail * bsize; left > 0; left -= FILLER_BYTES) {
    const written = await writeFile(filler, bytes.subarray(0, Math.min(left, FILLER_BYTES)), { flag: "a" }).catch(
      (error: NodeJS.ErrnoException) => error.code,
    );
    if (written === "ENOSPC") break;
  }
  return () => rm(filler, { force: true });
}

export const FAULTS: readonly Fault[] = [
  {
    name: "kill-function",
    summary: "kill -9 of a running function",
    needs: "processes",
    group: "processes",
    milliseconds: 0,
    begin: kill(everyProcess),
  },
  {
    name: "kill-trigger",
    summary: "kill -9 of a running trigger or of the relay",
    needs: "processes",
    group: "processes",
    milliseconds: 0,
    begin: kill(isTrigger),
  },
  {
    name: "kill-reader",
    summary: "kill -9 of the function that settles events while it reads",
    needs: "processes",
    group: "processes",
    milliseconds: 0,
    begin: kill(isReader),
  },
  {
    name: "kill-all-functions",
    summary: "kill -9 of every running function",
    needs: "processes",
    group: "processes",
    milliseconds: 0,
    begin: kill(everyProcess, true),
  },
  {
    name: "freeze-function",
    summary: "SIGSTOP of a running function",
    needs: "processes",
    group: "processes",
    milliseconds: 2_000,
    begin: disturbFunction(everyProcess, "SIGSTOP", "SIGCONT"),
  },
  {
    name: "freeze-trigger",
    summary: "SIGSTOP of a running trigger or of the relay",
    needs: "processes",
    group: "processes",
    milliseconds: 2_000,
    begin: disturbFunction(isTrigger, "SIGSTOP", "SIGCONT"),
  },
  {
    name: "new-revision",
    summary: "a running function is replaced while requests arrive",
    needs: "processes",
    group: "processes",
    milliseconds: 0,
    async begin(target) {
      const running = await runningFunctions(target, everyProcess);
      if (running.length === 0) return undefined;
      await lotusOf(target).replace(target.random.pick(running).name);
      return healed;
    },
  },
  {
    name: "jump-clock",
    summary: "the clock of a running function jumps by ten minutes, forward or backward, and back",
    needs: "processes",
    group: "processes",
    milliseconds: 3_000,
    begin: disturbFunction(everyProcess, "SIGUSR2", "SIGUSR2"),
  },
  {
    name: "kill-gateway",
    summary: "kill -9 of the process of the gateway and the event bus; its functions end with it",
    needs: "processes",
    group: "processes",
    milliseconds: 500,
    async begin(target) {
      const lotus = lotusOf(target);
      lotus.kill();
      return () => lotus.restart();
    },
  },
  {
    name: "freeze-gateway",
    summary: "SIGSTOP of the process of the gateway and the event bus",
    needs: "processes",
    group: "processes",
    milliseconds: 2_000,
    async begin(target) {
      const lotus = lotusOf(target);
      lotus.freeze();
      return async () => lotus.thaw();
    },
  },
  {
    name: "rotate-keys",
    summary: "a new key signs the tokens from now on",
    needs: "processes",
    group: "processes",
    milliseconds: 0,
    async begin({ secretsFolder }) {
      if (secretsFolder === undefined) return undefined;
      await rotateKeys(secretsFolder);
      return healed;
    },
  },
  {
    name: "terminate-backends",
    summary: "every database session is terminated",
    needs: "superuser",
    group: "database",
    milliseconds: 0,
    async begin({ directUrl }) {
      await withDatabase(directUrl, (client) => client.query(TERMINATE));
      return healed;
    },
  },
  {
    name: "stop-postgres-immediate",
    summary: "Postgres stops with `immediate` and starts again",
    needs: "server",
    group: "database",
    milliseconds: 1_000,
    async begin({ server }) {
      server?.postgres().process.kill("SIGQUIT");
      return async () => server?.restart();
    },
  },
  {
    name: "kill-postmaster",
    summary: "kill -9 of the postmaster",
    needs: "server",
    group: "database",
    milliseconds: 1_000,
    async begin({ server }) {
      server?.postgres().process.kill("SIGKILL");
      return async () => server?.restart();
    },
  },
  {
    name: "full-disk",
    summary: "the filesystem of the database is full",
    needs: "small disk",
    group: "database",
    milliseconds: 3_000,
    async begin(target) {
      const free = await fillDisk(target);
      return async () => {
        await free();
        const { exitCode, signalCode } = target.server?.postgres().process ?? {};
        // Postgres ends itself when it cannot write its log.
        if (exitCode !== null || signalCode !== null) await target.server?.restart();
      };
    },
  },
  {
    name: "cut-after-commit",
    summary: "connections are cut after the statement was committed and before its answer arrives",
    needs: "network",
    group: "network",
    milliseconds: 300,
    begin: disturb(() => ({ kind: "cut-answers" })),
  },
  {
    name: "slow-database",
    summary: "each packet takes 100 ms more",
    needs: "network",
    group: "network",
    milliseconds: 3_000,
    begin: disturb(() => ({ kind: "slow", milliseconds: 100 })),
  },
  {
    name: "unstable-database",
    summary: "each packet takes 20 ms more, and one in twenty resets its connection",
    needs: "network",
    group: "network",
    milliseconds: 2_000,
    begin: disturb((random) => ({ kind: "unstable", milliseconds: 20, resets: () => random.next() < 0.05 })),
  },
  {
    name: "freeze-database",
    summary: "no byte passes, and no connection is closed",
    needs: "network",
    group: "network",
    milliseconds: 3_000,
    begin: disturb(() => ({ kind: "frozen" })),
  },
  {
    name: "vanish-database",
    summary: "the open connections lose every byte for good, without FIN and without RST",
    needs: "network",
    group: "network",
    milliseconds: 500,
    begin: disturb(() => ({ kind: "vanished" })),
  },
  {
    name: "refuse-connections",
    summary: "database connections are reset and refused",
    needs: "network",
    group: "network",
    milliseconds: 2_000,
    begin: disturb(() => ({ kind: "refused" })),
  },
  {
    name: "kill-pooler",
    summary: "kill -9 of the pooler between the functions and Postgres, which starts again",
    needs: "pooler",
    group: "network",
    milliseconds: 1_000,
    async begin({ pooler }) {
      pooler?.kill();
      return async () => pooler?.restart();
    },
  },
  {
    name: "read-only-database",
    summary: "the database is read-only, as after a failover to a standby",
    needs: "superuser",
    group: "database",
    milliseconds: 3_000,
    begin: ({ directUrl }) =>
      configure(directUrl, "set default_transaction_read_only = on", "reset default_transaction_read_only"),
  },
  {
    name: "connection-limit",
    summary: "the database accepts no further connection",
    needs: "superuser",
    group: "database",
    milliseconds: 2_000,
    begin: ({ directUrl }) => configure(directUrl, "connection limit 0", "connection limit -1"),
  },
  {
    name: "lock-accounts",
    summary: "a foreign transaction locks two accounts",
    needs: "database",
    group: "database",
    milliseconds: 4_000,
    begin: ({ directUrl }) =>
      lockRows(directUrl, "select from billing.accounts where kind = 'user' order by random() limit 2 for update"),
  },
  {
    name: "lock-outbox",
    summary: "a foreign transaction locks the events that are on their way",
    needs: "database",
    group: "database",
    milliseconds: 2_000,
    begin: ({ directUrl }) => lockRows(directUrl, "select from events.outbox order by time, id for update"),
  },
  {
    name: "migrate",
    summary: "a migration adds and drops columns beside running statements",
    needs: "database",
    group: "database",
    milliseconds: 1_000,
    async begin({ directUrl }) {
      const change = (text: string) =>
        withDatabase(directUrl, async (client) => {
          await client.query("set lock_timeout = '2s'");
          await client.query(text).catch((error: { code?: string }) => {
            // The fault stops waiting for a lock after a time, as the migration does.
            if (error.code !== "55P03") throw error;
          });
        });
      await change('alter table "order".orders add column if not exists chaos text');
      return () => change('alter table "order".orders drop column if exists chaos');
    },
  },
  {
    name: "replace-functions",
    summary: "every function of the database is created again in one transaction, as a migration does",
    needs: "database",
    group: "database",
    milliseconds: 0,
    async begin({ directUrl }) {
      await withDatabase(directUrl, async (client) => {
        const { rows } = await client.query(
          `select pg_get_functiondef(p.oid) as text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
           where n.nspname in ('billing', 'order', 'notification', 'events', 'profile') and p.prokind = 'f' order by p.oid`,
        );
        await client.query("begin");
        for (const { text } of rows) await client.query(text);
        await client.query("commit");
      });
      return healed;
    },
  },
  {
    name: "deliver-twice",
    summary: "events that are on their way are delivered three times more, at the same time",
    needs: "processes",
    group: "events",
    milliseconds: 0,
    async begin(target) {
      const events = await eventsOnTheirWay(target);
      if (events.length === 0) return undefined;
      await deliverAll(target, events, 3);
      return healed;
    },
  },
  {
    name: "deliver-late",
    summary: "events are delivered again seconds later, in the opposite order, after newer ones",
    needs: "processes",
    group: "events",
    milliseconds: 3_000,
    async begin(target) {
      const events = await eventsOnTheirWay(target);
      if (events.length === 0) return undefined;
      return () => deliverAll(target, [...events].reverse(), 1);
    },
  },
  {
    name: "poison-event",
    summary: "a foreign producer sends an event that no subscriber can handle",
    needs: "processes",
    group: "events",
    milliseconds: 0,
    async begin(target) {
      const id = randomUUID();
      const attributes = { specversion: "1.0", id, source: "/chaos", type: "chaos.poison" };
      target.poison.sent.add(id);
      if (await deliver(target, "notification-store", attributes, '{"kind":"poison"}'))
        target.poison.acknowledged.add(id);
      return healed;
    },
  },
  {
    name: "large-record",
    summary: "the outbox contains an event that the broker refuses for its size",
    needs: "database",
    group: "database",
    milliseconds: 0,
    async begin({ directUrl, poison }) {
      await withDatabase(directUrl, async (client) => {
        await client.query("begin");
        const { rows } = await client.query(
          `select events.emit('notification-requested', 1, 'chaos', u.id, null, jsonb_build_object('userId', u.id,
             'recipient', 'a@example.com', 'kind', 'message', 'message', repeat('x', $1))) -> 'event' ->> 'id' as id
           from (select gen_random_uuid() as id) u`,
          [LARGE_RECORD_BYTES],
        );
        await client.query("update events.outbox set attempted_at = '-infinity' where id = $1", [rows[0].id]);
        poison.sent.add(rows[0].id);
        await client.query("commit");
        poison.acknowledged.add(rows[0].id);
      });
      return healed;
    },
  },
  {
    name: "republish",
    summary: "the relay publishes everything that is in the outbox, settled or not",
    needs: "database",
    group: "events",
    milliseconds: 0,
    async begin({ lotus, directUrl }) {
      await withDatabase(directUrl, (client) => client.query(MAKE_OVERDUE)).catch(() => undefined);
      await lotus?.tick();
      return healed;
    },
  },
  {
    name: "lose-events",
    summary: "the bus accepts events and loses them, as Kafka with a deleted topic",
    needs: "bus",
    group: "kafka",
    milliseconds: 1_500,
    begin: become("lose"),
  },
  {
    name: "refuse-events",
    summary: "the bus refuses every event, as brokers that are down",
    needs: "bus",
    group: "kafka",
    milliseconds: 3_000,
    begin: become("refuse"),
  },
  {
    name: "kill-broker",
    summary: "kill -9 of one broker",
    needs: "kafka",
    group: "kafka",
    milliseconds: 2_000,
    begin: killBrokers(false),
  },
  {
    name: "kill-all-brokers",
    summary: "kill -9 of every broker",
    needs: "kafka",
    group: "kafka",
    milliseconds: 2_000,
    begin: killBrokers(true),
  },
  {
    name: "refuse-credentials",
    summary: "a broker restarts with another password and refuses the credentials of Lotus",
    needs: "kafka",
    group: "kafka",
    milliseconds: 3_000,
    async begin({ kafka, random }) {
      const index = random.pick([...(kafka?.bootstrap.keys() ?? [])]);
      await kafka?.changePassword(index, false);
      return async () => kafka?.changePassword(index, true);
    },
  },
  {
    name: "delete-topic",
    summary: "a topic is deleted with its records and created again",
    needs: "kafka",
    group: "kafka",
    milliseconds: 1_000,
    async begin(target) {
      const topic = target.random.pick(lotusOf(target).sources.flatMap(({ topics }) => topics));
      await asAdmin(target.kafka?.bootstrap ?? [], (admin) => admin.deleteTopics({ topics: [topic] }));
      return async () => void (await createTopics(target.kafka?.bootstrap ?? []));
    },
  },
  {
    name: "rebalance",
    summary: "a foreign consumer joins the group of a source, receives records without handling them, and leaves",
    needs: "kafka",
    group: "kafka",
    milliseconds: 2_000,
    begin: rebalance(false),
  },
  {
    name: "reset-group",
    summary: "the consumer group of a source begins again at the first record",
    needs: "kafka",
    group: "kafka",
    milliseconds: 2_000,
    begin: rebalance(true),
  },
];

/** Injects one fault, waits for its duration, and heals it. Returns whether it had a target. */
export async function inject(fault: Fault, target: Target, end: AbortSignal): Promise<boolean> {
  const heal = await fault.begin(target).catch((error: { code?: string }) => {
    // Postgres ends one transaction of a deadlock: here the transaction of the fault, at other times one of Lotus.
    if (error.code === DEADLOCK_DETECTED) return undefined;
    throw error;
  });
  if (heal === undefined) return false;
  await delay(fault.milliseconds, undefined, { signal: end }).catch(() => undefined);
  const until = performance.now() + HEAL_MILLISECONDS_MAX;
  for (;;) {
    try {
      await heal();
      return true;
    } catch (error) {
      if (performance.now() > until)
        throw new Error(`The fault ${fault.name} could not be healed: ${(error as Error).message}`, { cause: error });
    }
    await delay(HEAL_PAUSE_MILLISECONDS);
  }
}
