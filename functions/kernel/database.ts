/** The database: Neon's driver over its WebSocket, one pool a process, prepared statements. */
import { type Client, neonConfig, Pool, type PoolClient } from "@neondatabase/serverless";
import { WebSocket } from "ws";
import { failure, log } from "./log.ts";
import { Problem } from "./problem.ts";
import {
  POOL_CONNECTIONS_MAX,
  POOL_IDLE_MILLISECONDS_MAX,
  POOL_WAIT_MILLISECONDS_MAX,
  ROW_STATEMENTS_MAX,
  readSettingFile,
  required,
  STATEMENT_MILLISECONDS_MAX,
  settings,
} from "./settings.ts";

/**
 * Joins what the driver writes in one turn of the event loop into one message. The driver's own `coalesceWrites` waits for a
 * timer, a millisecond at least for every statement.
 */
class CoalescingWebSocket extends WebSocket {
  #pending: Uint8Array[] = [];

  constructor(url: string) {
    super(url, { perMessageDeflate: false });
  }

  override send(data: Uint8Array): void {
    if (this.#pending.push(data) > 1) return;
    process.nextTick(() => {
      const pending = this.#pending;
      this.#pending = [];
      if (this.readyState === WebSocket.OPEN) super.send(pending.length === 1 ? data : Buffer.concat(pending));
      // Its close event tells whoever waits for an answer; a closing handshake may take half a minute to come to it.
      else this.terminate();
    });
  }
}

let pool: Pool | undefined;

function openPool(): Pool {
  const { DATABASE_WSPROXY_URL: wsproxy, DATABASE_PASSWORD_FILE: passwordFile } = settings();
  neonConfig.webSocketConstructor = CoalescingWebSocket;
  neonConfig.coalesceWrites = false;
  if (wsproxy !== undefined) {
    const { host, pathname, protocol } = new URL(wsproxy);
    neonConfig.wsProxy = () => host + pathname;
    neonConfig.useSecureWebSocket = protocol === "wss:";
  }
  const url = new URL(required("DATABASE_URL"));
  if (passwordFile !== undefined) url.password = encodeURIComponent(readSettingFile("DATABASE_PASSWORD_FILE"));
  const opened = new Pool({
    connectionString: url.href,
    max: POOL_CONNECTIONS_MAX,
    connectionTimeoutMillis: POOL_WAIT_MILLISECONDS_MAX,
    idleTimeoutMillis: POOL_IDLE_MILLISECONDS_MAX,
    // Above the server's limit, which migrations set for each role (a pooler such as Neon's takes none with a connection), so that
    // this one speaks only when the server does not.
    query_timeout: STATEMENT_MILLISECONDS_MAX + 1_000,
  });
  // Without listeners a connection that is cut while idle would end the process.
  const report = (error: unknown) =>
    log("warning", "a database connection was lost", { reason: failure(error).reason ?? "" });
  opened.on("error", report);
  opened.on("connect", (client: Client) => client.on("error", report));
  return opened;
}

let opening: Promise<void> | undefined;

/** Opens the first connection while nobody waits for it yet. A failure shows at the first statement. */
export function openDatabase(): void {
  opening = connect()
    .then((client) => client.release())
    .finally(() => {
      opening = undefined;
    });
  opening.catch(() => undefined);
}

/** Connects, once more with the password that the file holds by now when the one we know has been changed. */
async function connect(): Promise<PoolClient> {
  pool ??= openPool();
  const used = pool;
  try {
    return await used.connect();
  } catch (error) {
    if (sqlState(error) !== INVALID_PASSWORD || settings().DATABASE_PASSWORD_FILE === undefined) throw error;
    if (pool === used) {
      pool = openPool();
      // What it still does, it may finish; nobody waits for it.
      void used.end().catch(() => undefined);
    }
    return pool.connect();
  }
}

/** What a lost connection means for a statement that was already sent. */
export type Repetition =
  /** It changes nothing, or nothing that anybody asked for: send it again. */
  | "repeatable"
  /** It happens once, however often it is sent: send it again, and when that fails too, say that it may have happened. */
  | "keyed"
  /** It may have been committed: say so. */
  | "once";

/** SQLSTATE classes of a server that cannot work now, and has rolled back: 53 resources, 57 operator intervention. */
const UNAVAILABLE = /^(53|57)/;
/** Class 40: a deadlock, or a conflict of transactions. What was chosen to give way has been rolled back, and may try again. */
const ROLLED_BACK = /^40/;
/** Class 08: a pooler says that it has lost the server, and does not know what that has done. */
const LOST = /^08/;
const INVALID_PASSWORD = "28P01";
/** A statement ended because it waited for a row, or ran, for too long. A second attempt would wait as long again. */
const LOCK_NOT_AVAILABLE = "55P03";
const QUERY_CANCELED = "57014";

function sqlState(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === "string" && /^[0-9A-Z]{5}$/.test(code) ? code : undefined;
}

/** Makes the problem of a database that does not answer. */
export const unavailable = () =>
  new Problem("unavailable", "The database does not answer. Nothing was changed; try again in a moment.", {
    headers: { "retry-after": "1" },
  });

/** Another transaction held a row for longer than ROW_WAIT_MILLISECONDS_MAX. Nothing was changed. */
export class RowLocked extends Problem {
  constructor() {
    super(
      "unavailable",
      "Another request holds the same data for too long. Nothing was changed; try again in a moment.",
      {
        headers: { "retry-after": "1" },
      },
    );
  }
}

/** Makes the problem of a statement that was cut off and may have been committed. */
export const outcomeUnknown = () =>
  new Problem(
    "outcome-unknown",
    "The connection was lost before the outcome was known. A request that has an Idempotency-Key can simply be repeated with it; else look first whether it happened.",
  );

/**
 * Runs one prepared statement: one round trip, one transaction.
 * @param name names the prepared statement; one text a name
 * @throws {Problem} `unavailable` when the database cannot be reached and nothing was changed, `outcome-unknown` when the
 *   statement was cut off and could not be repeated
 */
export async function query<Row>(
  name: string,
  text: string,
  values: readonly unknown[],
  repetition: Repetition = "repeatable",
): Promise<Row[]> {
  let outcomeIsKnown = true;
  const giveUp = () => (outcomeIsKnown || repetition === "repeatable" ? unavailable() : outcomeUnknown());
  for (let attempt = 1; ; attempt++) {
    // What is being opened already is sooner there than one more connection.
    const client = await (opening?.then(connect) ?? connect()).catch((error: unknown) => {
      log("error", "no database connection", { reason: failure(error).reason ?? "" });
      throw giveUp();
    });
    try {
      const { rows } = await client.query({ name, text, values: values as unknown[] });
      client.release();
      return rows as Row[];
    } catch (error) {
      const state = sqlState(error);
      // Without a word of the server that was asked, nobody knows what it has done, and the connection is of no use.
      const lost = state === undefined || LOST.test(state);
      client.release(lost || (UNAVAILABLE.test(state) && state !== QUERY_CANCELED));
      if (state === LOCK_NOT_AVAILABLE && outcomeIsKnown) throw new RowLocked();
      if (!lost && !UNAVAILABLE.test(state) && !ROLLED_BACK.test(state)) throw error;
      log("warning", "a statement was cut off", { reason: failure(error).reason ?? "" });
      outcomeIsKnown &&= !lost;
      if (attempt > 1 || state === QUERY_CANCELED || (lost && repetition === "once")) throw giveUp();
    }
  }
}

interface Turn {
  underWay: number;
  readonly waiting: Set<() => void>;
}
const turns = new Map<string, Turn>();

/** Resolves when it is this one's turn. @throws {Problem} `unavailable`, when that takes too long */
function itsTurn({ waiting }: Turn): Promise<void> {
  return new Promise((resolve, reject) => {
    const begin = () => {
      clearTimeout(late);
      resolve();
    };
    const late = setTimeout(() => {
      waiting.delete(begin);
      reject(unavailable());
    }, POOL_WAIT_MILLISECONDS_MAX);
    waiting.add(begin);
  });
}

/**
 * Does work that locks the same row as other work of this key: a bounded number of it at a time, in the order of arrival. The rest
 * would wait for the row in the database, each holding a connection that somebody else could use.
 * @throws {Problem} `unavailable` when its turn does not come in time; nothing was changed then
 */
export async function inTurn<T>(key: string, work: () => Promise<T>): Promise<T> {
  const turn = turns.get(key) ?? { underWay: 0, waiting: new Set() };
  turns.set(key, turn);
  if (turn.underWay < ROW_STATEMENTS_MAX) turn.underWay++;
  else await itsTurn(turn);
  try {
    return await work();
  } finally {
    const [next] = turn.waiting;
    if (next === undefined) turn.underWay--;
    else {
      turn.waiting.delete(next);
      next();
    }
    if (turn.underWay === 0) turns.delete(key);
  }
}

/** Closes the pool: statements in progress finish first. Safe to call when none was opened. */
export async function closeDatabase(): Promise<void> {
  const closing = pool;
  pool = undefined;
  await closing?.end();
}
