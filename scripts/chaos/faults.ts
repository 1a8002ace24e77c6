/** The faults: each has a name, a duration and a heal. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Client } from "pg";
import type { Lotus } from "../local/lotus.ts";
import type { Postgres } from "../local/postgres.ts";
import type { PostgresProxy } from "./postgres-proxy.ts";
import type { Random } from "./random.ts";

/** A connection of a fault to the database must not hang on the fault of another. */
const CONNECT_MILLISECONDS_MAX = 5_000;

export interface Target {
  readonly lotus: Lotus;
  readonly proxy: PostgresProxy;
  /** The URL of Postgres itself, without the proxy, as its superuser. */
  readonly directUrl: string;
  readonly random: Random;
  /** The server process. It changes when a fault replaces the server. */
  postgres(): Postgres;
  /** Starts Postgres again at its port after a fault has ended it. */
  restartPostgres(): Promise<void>;
  /** The number of poison events injected so far. */
  poison: number;
}

export interface Fault {
  readonly name: string;
  /** The effect of the fault, for the report. */
  readonly summary: string;
  /** How long the fault lasts, in milliseconds. 0: an instant. */
  readonly milliseconds: number;
  /** Begins the fault. Resolves to what heals it. Resolves to undefined when there was no target, such as no running process. */
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

const nameOf = (url: string) => decodeURIComponent(new URL(url).pathname.slice(1));
const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`;

/** Ends every session of the database except the one that asks. */
const TERMINATE = `select pg_terminate_backend(pid) from pg_stat_activity
  where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'`;

/** Changes a setting of the database, ends its sessions, and resolves to what resets the setting. */
async function configure(url: string, set: string, reset: string): Promise<() => Promise<void>> {
  const database = quoted(nameOf(url));
  await withDatabase(url, async (client) => {
    await client.query("set default_transaction_read_only = off");
    await client.query(`alter database ${database} ${set}`);
    await client.query(TERMINATE);
  });
  return () =>
    withDatabase(url, async (client) => {
      await client.query("set default_transaction_read_only = off");
      await client.query(`alter database ${database} ${reset}`);
      await client.query(TERMINATE);
    });
}

/** A running process of a function, or undefined. */
function runningProcess({ lotus, random }: Target, matches: (name: string) => boolean = () => true) {
  const running = [...lotus.functions].filter(([name, fn]) => matches(name) && fn.running !== undefined);
  return running.length === 0 ? undefined : random.pick(running)[1].running?.child;
}

const kill =
  (matches?: (name: string) => boolean): Fault["begin"] =>
  async (target) => {
    const child = runningProcess(target, matches);
    if (child === undefined) return undefined;
    child.kill("SIGKILL");
    return healed;
  };

const disturb =
  (disturbance: Parameters<PostgresProxy["disturb"]>[0]): Fault["begin"] =>
  async ({ proxy }) => {
    proxy.disturb(disturbance);
    return async () => proxy.disturb({ kind: "none" });
  };

/** Sends an event to the inner address, as a source would. */
async function deliver(
  { lotus }: Target,
  subscriber: string,
  attributes: Readonly<Record<string, string>>,
  data: string,
): Promise<void> {
  const headers = Object.fromEntries(Object.entries(attributes).map(([name, value]) => [`ce-${name}`, value]));
  const answer = await fetch(`${lotus.insideUrl}/${subscriber}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: data,
    signal: AbortSignal.timeout(CONNECT_MILLISECONDS_MAX),
  }).catch(() => undefined);
  await answer?.arrayBuffer();
}

interface OutboxRow {
  readonly envelope: { readonly event: Readonly<Record<string, unknown>> };
  readonly awaiting: readonly string[];
}

/** Events that are on their way now. */
function eventsOnTheirWay({ directUrl }: Target, most: number): Promise<OutboxRow[]> {
  return withDatabase(directUrl, async (client) => {
    const { rows } = await client.query(
      "select events.envelope(o) as envelope, o.awaiting from events.outbox o limit $1",
      [most],
    );
    return rows as OutboxRow[];
  });
}

async function deliverAgain(target: Target, times: number, most: number): Promise<boolean> {
  const events = await eventsOnTheirWay(target, most);
  for (const { envelope, awaiting } of events) {
    const { data, ...attributes } = envelope.event;
    for (const subscriber of awaiting)
      for (let time = 0; time < times; time++)
        await deliver(target, subscriber, attributes as Record<string, string>, JSON.stringify(data));
  }
  return events.length > 0;
}

export const FAULTS: readonly Fault[] = [
  { name: "kill-function", summary: "kill -9 of a running function", milliseconds: 0, begin: kill() },
  {
    name: "kill-trigger",
    summary: "kill -9 of a running trigger",
    milliseconds: 0,
    begin: kill((name) => /^(?:notification-store|billing-open-account|events-)/.test(name)),
  },
  {
    name: "freeze-function",
    summary: "SIGSTOP of a running function",
    milliseconds: 2_000,
    async begin(target) {
      const child = runningProcess(target);
      if (child === undefined) return undefined;
      child.kill("SIGSTOP");
      return async () => void child.kill("SIGCONT");
    },
  },
  {
    name: "new-revision",
    summary: "a running function is replaced while requests arrive",
    milliseconds: 0,
    async begin({ lotus, random }) {
      const running = [...lotus.functions.values()].filter((fn) => fn.running !== undefined);
      if (running.length === 0) return undefined;
      void random.pick(running).stop();
      return healed;
    },
  },
  {
    name: "terminate-backends",
    summary: "every database session is terminated",
    milliseconds: 0,
    async begin({ directUrl }) {
      await withDatabase(directUrl, (client) => client.query(TERMINATE));
      return healed;
    },
  },
  {
    name: "stop-postgres-immediate",
    summary: "Postgres stops with `immediate` and starts again",
    milliseconds: 1_000,
    async begin(target) {
      target.postgres().process.kill("SIGQUIT");
      return () => target.restartPostgres();
    },
  },
  {
    name: "kill-postmaster",
    summary: "kill -9 of the postmaster",
    milliseconds: 1_000,
    async begin(target) {
      target.postgres().process.kill("SIGKILL");
      return () => target.restartPostgres();
    },
  },
  {
    name: "cut-after-commit",
    summary: "connections are cut after the statement was committed and before its answer arrives",
    milliseconds: 300,
    begin: disturb({ kind: "cut-answers" }),
  },
  {
    name: "slow-database",
    summary: "each packet takes 100 ms more",
    milliseconds: 3_000,
    begin: disturb({ kind: "slow", milliseconds: 100 }),
  },
  {
    name: "freeze-database",
    summary: "no byte passes, and no connection is closed",
    milliseconds: 3_000,
    begin: disturb({ kind: "frozen" }),
  },
  {
    name: "refuse-connections",
    summary: "database connections are reset and refused",
    milliseconds: 2_000,
    begin: disturb({ kind: "refused" }),
  },
  {
    name: "read-only-database",
    summary: "the database is read-only, as after a failover to a standby",
    milliseconds: 3_000,
    begin: ({ directUrl }) =>
      configure(directUrl, "set default_transaction_read_only = on", "reset default_transaction_read_only"),
  },
  {
    name: "connection-limit",
    summary: "the database accepts no further connection",
    milliseconds: 2_000,
    begin: ({ directUrl }) => configure(directUrl, "connection limit 0", "connection limit -1"),
  },
  {
    name: "lock-accounts",
    summary: "a foreign transaction locks two accounts",
    milliseconds: 4_000,
    async begin({ directUrl }) {
      const client = new Client({ connectionString: directUrl, connectionTimeoutMillis: CONNECT_MILLISECONDS_MAX });
      client.on("error", () => undefined);
      await client.connect();
      await client.query("begin");
      await client.query("select from billing.accounts where kind = 'user' order by random() limit 2 for update");
      return async () => void (await client.end().catch(() => undefined));
    },
  },
  {
    name: "deliver-twice",
    summary: "events that are on their way are delivered three times more",
    milliseconds: 0,
    begin: async (target) => ((await deliverAgain(target, 3, 20)) ? healed : undefined),
  },
  {
    name: "deliver-late",
    summary: "events are delivered again seconds later, after newer ones",
    milliseconds: 3_000,
    async begin(target) {
      const events = await eventsOnTheirWay(target, 20);
      if (events.length === 0) return undefined;
      return async () => {
        for (const { envelope, awaiting } of events.reverse()) {
          const { data, ...attributes } = envelope.event;
          for (const subscriber of awaiting)
            await deliver(target, subscriber, attributes as Record<string, string>, JSON.stringify(data));
        }
      };
    },
  },
  {
    name: "poison-event",
    summary: "a foreign producer sends an event that no subscriber can handle",
    milliseconds: 0,
    async begin(target) {
      const attributes = { specversion: "1.0", id: randomUUID(), source: "/chaos", type: "chaos.poison" };
      await deliver(target, "notification-store", attributes, '{"kind":"poison"}');
      return healed;
    },
  },
  {
    name: "migrate",
    summary: "a migration adds and drops columns beside running statements",
    milliseconds: 1_000,
    async begin({ directUrl }) {
      const change = (text: string) =>
        withDatabase(directUrl, async (client) => {
          await client.query("set lock_timeout = '2s'");
          await client.query(text).catch((error: { code?: string }) => {
            // A lock that does not come in time is given up, as the migration does.
            if (error.code !== "55P03") throw error;
          });
        });
      await change('alter table "order".orders add column if not exists chaos text');
      return () => change('alter table "order".orders drop column if exists chaos');
    },
  },
  {
    name: "relay-now",
    summary: "the relay publishes everything that is in the outbox, settled or not",
    milliseconds: 0,
    async begin({ lotus, directUrl }) {
      await withDatabase(directUrl, (client) =>
        client.query("update events.outbox set attempted_at = '-infinity'"),
      ).catch(() => undefined);
      await lotus.tick();
      return healed;
    },
  },
];

/** Faults that this command does not inject on one machine, with the reason. The report lists them as skipped. */
export const SKIPPED: Readonly<Record<string, string>> = {
  "full-disk": "needs a small filesystem that only root can mount",
  "clock-jump": "needs a time namespace or libfaketime",
};

/** Injects one fault, waits for its duration, and heals it. Returns whether it had a target. */
export async function inject(fault: Fault, target: Target, end: AbortSignal): Promise<boolean> {
  const heal = await fault.begin(target);
  if (heal === undefined) return false;
  try {
    await delay(fault.milliseconds, undefined, { signal: end }).catch(() => undefined);
  } finally {
    await heal();
  }
  return true;
}
