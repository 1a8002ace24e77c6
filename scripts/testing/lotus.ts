/** Starts a separate Lotus for a test: the real gateway, event bus, function processes, and a database from the template. */
import { randomUUID } from "node:crypto";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, escapeIdentifier } from "pg";
import { inject } from "vitest";
import { databaseOf, roleName } from "../database/roles.ts";
import { type Lotus, type LotusOptions, startLotus } from "../local/lotus.ts";
import { waitFor } from "../process/wait.ts";
import { createTestDatabase } from "./database.ts";
import { type Network, startNetwork } from "./network.ts";

/** More than the 70 s in which the relay publishes an event again: it runs every minute, for events older than 10 s. */
const EVENTUALLY_MILLISECONDS_MAX = 100_000;
const EVENTUALLY_STEP_MILLISECONDS = 10;
/** In the message of a test whose outbox does not become empty. */
const WAITING_EVENTS_SHOWN_MAX = 5;
const LINES_SHOWN_MAX = 20;

export interface TestLotus extends Lotus {
  /** The network between the functions and Postgres. */
  readonly network: Network;
  /** A client of its database as the owner, which does not use that network. */
  readonly database: Client;
  /** Every line that a function has written, by function. */
  readonly lines: ReadonlyMap<string, string[]>;
  /** The reports of startLotus: starts, crashes, dead letters. */
  readonly news: string[];
}

/** Starts a Lotus. `stop` also drops its database. */
export async function startTestLotus(options: Partial<LotusOptions> = {}): Promise<TestLotus> {
  const { url: databaseUrl, drop } = await createTestDatabase();
  const folder = await mkdtemp(join(tmpdir(), "lotus-test-"));
  await cp(inject("secrets"), join(folder, "secrets"), { recursive: true });
  const network = await startNetwork(Number(new URL(databaseUrl).port));
  const behindNetwork = Object.assign(new URL(databaseUrl), { port: String(network.port) }).href;
  const lines = new Map<string, string[]>();
  const news: string[] = [];
  const lotus = await startLotus({
    port: 0,
    folder,
    databaseUrl: behindNetwork,
    built: true,
    onLine(fn, line) {
      const written = lines.get(fn);
      if (written === undefined) lines.set(fn, [line]);
      else written.push(line);
    },
    onNews: (fn, text) => void news.push(`${fn}: ${text}`),
    ...options,
  });
  const database = new Client({ connectionString: databaseUrl });
  await database.connect();
  return {
    ...lotus,
    adminUrl: databaseUrl,
    network,
    database,
    lines,
    news,
    async stop() {
      await lotus.stop();
      await network.stop();
      await database.end();
      await drop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** The quoted name of a service's role, for SQL. */
export function roleOf(lotus: Pick<Lotus, "adminUrl">, service: string): string {
  return escapeIdentifier(roleName(databaseOf(lotus.adminUrl), service));
}

/** An answer with its complete body. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: a test says what it expects of it
  readonly body: any;
}

export interface CallOptions {
  /** Sent as JSON; a string or bytes as they are. */
  readonly body?: unknown;
  readonly token?: string;
  readonly headers?: Record<string, string>;
}

/** Calls Lotus through its gateway. */
export async function call(lotus: Pick<Lotus, "url">, request: string, options: CallOptions = {}): Promise<Answer> {
  const [method = "GET", path = "/"] = request.split(" ");
  const { body, token, headers } = options;
  const raw = body === undefined || typeof body === "string" || body instanceof Uint8Array;
  const answer = await fetch(lotus.url + path, {
    method,
    headers: {
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...headers,
    },
    ...(body === undefined ? {} : { body: raw ? (body as string) : JSON.stringify(body) }),
  });
  const text = await answer.text();
  const json = /json/.test(answer.headers.get("content-type") ?? "");
  return { status: answer.status, headers: answer.headers, body: json ? JSON.parse(text) : text };
}

export interface TestUser {
  readonly id: string;
  readonly email: string;
  readonly password: string;
  readonly token: string;
  /** Calls as this user. */
  call(request: string, options?: CallOptions): Promise<Answer>;
}

/** Registers a user and logs in. Deposits `money` when it is given. */
export async function newUser(lotus: Pick<Lotus, "url">, money?: number | string): Promise<TestUser> {
  const email = `${randomUUID()}@example.com`;
  const password = "correct horse battery";
  const registered = await call(lotus, "POST /profile/register", { body: { email, password } });
  if (registered.status !== 201) throw new Error(`not registered: ${JSON.stringify(registered.body)}`);
  const { body } = await call(lotus, "POST /profile/login", { body: { email, password } });
  const token = body.token as string;
  const user: TestUser = {
    id: registered.body.id as string,
    email,
    password,
    token,
    call: (request, options = {}) => call(lotus, request, { token, ...options }),
  };
  if (money !== undefined) {
    const added = await user.call(`POST /billing/add-money?money=${money}`);
    if (added.status !== 200) throw new Error(`no money added: ${JSON.stringify(added.body)}`);
  }
  return user;
}

/** Polls `look` until it returns a value other than undefined or false. Fails with `what` after a time limit. */
export async function eventually<T>(
  what: string,
  look: () => Promise<T | undefined | false> | T | undefined | false,
  millisecondsMax = EVENTUALLY_MILLISECONDS_MAX,
): Promise<T> {
  const seen = await waitFor(look, { millisecondsMax, stepMilliseconds: EVENTUALLY_STEP_MILLISECONDS });
  if (seen === undefined) throw new Error(`Not reached within ${millisecondsMax / 1000} s: ${what}.`);
  return seen;
}

/** Resolves when the outbox is empty; fails with the events that wait, and with the last lines of their subscribers' logs. */
export async function settled(
  lotus: Pick<TestLotus, "database"> & Partial<Pick<TestLotus, "lines">>,
  millisecondsMax = EVENTUALLY_MILLISECONDS_MAX,
): Promise<void> {
  const empty = async () => {
    const { rows } = await lotus.database.query("select count(*)::int as waiting from events.outbox");
    return rows[0]?.waiting === 0;
  };
  try {
    await eventually("the outbox is empty", empty, millisecondsMax);
  } catch (error) {
    const { rows } = await lotus.database.query(
      "select topic, awaiting, attempts, attempted_at, time, data from events.outbox order by time limit $1",
      [WAITING_EVENTS_SHOWN_MAX],
    );
    const subscribers = new Set(rows.flatMap(({ awaiting }: { awaiting: string[] }) => awaiting));
    const said = [...subscribers].flatMap((name) => (lotus.lines?.get(name) ?? []).slice(-LINES_SHOWN_MAX));
    throw new Error(`${(error as Error).message}\n${[...rows.map((row) => JSON.stringify(row)), ...said].join("\n")}`);
  }
}

/** Kills a function's process with SIGKILL. False: the function has no process. */
export function killFunction(lotus: Pick<Lotus, "functions">, name: string): boolean {
  return lotus.functions.get(name)?.running?.child.kill("SIGKILL") ?? false;
}

const PAUSE_GROWTH = 1.2;

/**
 * Disturbs a work repeatedly, and resolves to its result. Each pause is longer than the previous one, so that the work also ends
 * on the slowest machine.
 */
export async function meanwhile<T>(pauseMilliseconds: number, disturb: () => void, work: () => Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const next = (pause: number) => {
    timer = setTimeout(() => {
      disturb();
      next(pause * PAUSE_GROWTH);
    }, pause);
  };
  next(pauseMilliseconds);
  try {
    return await work();
  } finally {
    clearTimeout(timer);
  }
}

/** Makes all events of the outbox overdue for the next run of the relay. Locks in the order of readers, as `events.release` does. */
export async function makeOverdue(database: Client): Promise<void> {
  await database.query(
    `with waiting as materialized (select id from events.outbox order by time for update)
     update events.outbox o set attempted_at = '-infinity' from waiting where o.id = waiting.id`,
  );
}

/** Makes every outbox row overdue and runs the relay. */
export async function relayNow(lotus: Pick<TestLotus, "database" | "tick">): Promise<void> {
  await makeOverdue(lotus.database);
  await lotus.tick("events-relay");
}

/** Repeats a request with its Idempotency-Key until the answer is final. */
export async function untilAnswered(user: TestUser, request: string, key: string = randomUUID()): Promise<Answer> {
  return eventually(`${request} is answered`, async () => {
    const answer = await user.call(request, { headers: { "idempotency-key": key } });
    return answer.status < 500 && answer;
  });
}

/** Locks the account of a user, so that movements of its money wait. Resolves to the function that releases the lock. */
export async function holdAccount(
  lotus: TestLotus,
  user: TestUser,
): Promise<{ waiting(): Promise<number>; release(): Promise<void> }> {
  const holder = new Client({ connectionString: lotus.adminUrl });
  await holder.connect();
  await holder.query("begin");
  await holder.query("select from billing.accounts where id = $1 for update", [user.id]);
  return {
    async waiting() {
      // pg_stat_activity hides the waits of other roles from the owner; pg_locks does not.
      const { rows } = await lotus.database.query("select distinct pid from pg_locks where not granted");
      return rows.length;
    },
    async release() {
      await holder.query("rollback");
      await holder.end();
    },
  };
}
