/** The database: Neon's driver over a socket to Postgres, one pool a process, prepared statements. */
import { setTimeout as delay } from "node:timers/promises";
import { Client, neonConfig, Pool, type PoolClient } from "@neondatabase/serverless";
import { type DatabaseAddress, isNeon, readDatabaseAddress } from "./database-url.ts";
import {
  DATABASE_CHECK_MILLISECONDS_MAX,
  DATABASE_CONNECT_MILLISECONDS_MAX,
  DATABASE_IDLE_TRUSTED_MILLISECONDS,
  DATABASE_RETRY_AFTER_SECONDS,
  DATABASE_RETRY_MILLISECONDS_MAX,
  DATABASE_RETRY_PAUSE_MILLISECONDS_MAX,
  DATABASE_RETRY_PAUSE_MILLISECONDS_MIN,
  POOL_IDLE_MILLISECONDS_MAX,
  POOL_WAIT_MILLISECONDS_MAX,
  STATEMENT_MILLISECONDS_MAX,
} from "./limits.ts";
import { failure, log } from "./log.ts";
import { NeonSocket } from "./neon-socket.ts";
import { NotSentError, postgresSocket } from "./postgres-socket.ts";
import { Problem } from "./problem.ts";
import { scramProof } from "./scram.ts";
import { readSettingFile, required, settings } from "./settings.ts";
import { isRecording, type Span, Statement } from "./telemetry.ts";

/** The driver's SCRAM session. `message` is the name of its state. */
interface ScramSession {
  clientNonce: string;
  message: string;
  response: string;
  serverSignature: string;
}

/** The parts of the driver's client that its type declarations omit. */
interface Internals {
  readonly password: string;
  readonly saslSession: ScramSession;
  readonly connection: {
    /** Ends a statement. The driver sends Flush and Sync. */
    sync(): void;
    /** The driver ends the connection when it is true and the server closes it. */
    _ending: boolean;
    _send(message: Uint8Array): void;
    sendSCRAMClientFinalMessage(message: string): void;
    emit(name: "error", error: unknown): void;
  };
}

/** PostgreSQL's protocol, 54.7: the message Sync. */
const SYNC = Buffer.from("S\0\0\0\x04", "latin1");

/**
 * The driver's client with a fast SCRAM login, and without the message Flush. Flush makes the server send the rows before it commits, in
 * a separate packet, so that this process reads twice. postgres-socket.test.ts fails when a new driver breaks an override.
 */
class FastClient extends Client {
  constructor(config: ConstructorParameters<typeof Client>[0]) {
    super(config);
    const { connection } = this as unknown as Internals;
    connection.sync = () => {
      connection._ending = true;
      connection._send(SYNC);
    };
  }

  override async _handleAuthSASLContinue({ data }: { data: string }): Promise<void> {
    const { saslSession, password, connection } = this as unknown as Internals;
    try {
      const proof = await scramProof(saslSession.clientNonce, password ?? "", data);
      Object.assign(saslSession, proof, { message: "SASLResponse" });
      connection.sendSCRAMClientFinalMessage(proof.response);
    } catch (error) {
      connection.emit("error", error);
    }
  }
}

/** The time after which the driver has ended every statement, in milliseconds. */
const QUERY_MILLISECONDS_MAX = STATEMENT_MILLISECONDS_MAX + 1_000;

let pool: Pool | undefined;

/** Configures how the driver makes connections: over a socket to Postgres, or over a WebSocket to Neon. */
function configureTransport(address: DatabaseAddress, transport: string | undefined): void {
  neonConfig.coalesceWrites = false;
  const overWebSocket = transport === "websocket" || isNeon(address.host);
  // Only Neon expects the password before it asks. Other servers refuse such a password, and it would reach them as clear text.
  neonConfig.pipelineConnect = isNeon(address.host) ? "password" : false;
  if (overWebSocket) {
    neonConfig.webSocketConstructor = NeonSocket;
    neonConfig.wsProxy = isNeon(address.host) ? (host) => `${host}/v2` : (host, port) => `${host}:${port}/v2`;
    neonConfig.useSecureWebSocket = address.tlsMode !== "disable";
  } else {
    neonConfig.webSocketConstructor = postgresSocket(address);
    neonConfig.wsProxy = (host, port) => `${host}:${port}`;
  }
}

function openPool(): Pool {
  const {
    DATABASE_PASSWORD_FILE: passwordFile,
    DATABASE_CA_FILE: authorityFile,
    DATABASE_POOL,
    DATABASE_TRANSPORT,
  } = settings();
  const address = readDatabaseAddress(required("DATABASE_URL"), authorityFile);
  configureTransport(address, DATABASE_TRANSPORT);
  const { host, port, user, database, applicationName } = address;
  const opened = new Pool({
    host,
    port,
    user,
    database,
    application_name: applicationName,
    // Each login reads the file, so a rotated password needs no new process.
    password: passwordFile === undefined ? address.password : () => readSettingFile("DATABASE_PASSWORD_FILE"),
    max: DATABASE_POOL,
    connectionTimeoutMillis: Math.max(POOL_WAIT_MILLISECONDS_MAX, DATABASE_CONNECT_MILLISECONDS_MAX),
    idleTimeoutMillis: POOL_IDLE_MILLISECONDS_MAX,
    // The server ends a slow statement before this limit, by the `statement_timeout` of the role. This limit detects a lost connection.
    query_timeout: QUERY_MILLISECONDS_MAX,
    // For Neon `connect` resolves before the login. The answer to an empty query shows that the login succeeded.
    ...(isNeon(host) && {
      verify: (client: PoolClient, done: (error?: Error) => void) => void client.query("").then(() => done(), done),
    }),
  });
  Object.assign(opened, { Client: FastClient });
  // Without listeners the loss of an idle connection would end the process.
  const report = (error: unknown) =>
    log("warning", "a database connection was lost", { reason: failure(error).reason ?? "" });
  opened.on("error", report);
  opened.on("connect", (client: Client) => client.on("error", report));
  return opened;
}

/**
 * Logs in as functions do, runs one statement, and disconnects.
 * @param transport "websocket", or undefined for the transport that the host needs
 * @throws {Error} as the driver reports it
 */
export async function tryLogin(address: DatabaseAddress, transport?: string): Promise<void> {
  configureTransport(address, transport);
  const { host, port, user, password, database } = address;
  const client = new FastClient({
    host,
    port,
    user,
    password,
    database,
    connectionTimeoutMillis: DATABASE_CONNECT_MILLISECONDS_MAX,
  });
  client.on("error", () => undefined);
  try {
    await client.connect();
    await client.query("select 1");
  } catch (error) {
    // `end` of a connection that was never open does not resolve.
    void client.end().catch(() => undefined);
    throw error;
  }
  await client.end();
}

/** The message of pg-pool when all connections stay busy. The server still answers, so this is not a failure of the server. */
const POOL_BUSY = "timeout exceeded when trying to connect";

/** The failed attempts to connect since the last success. Above 0, statements wait for `recover`. */
let failures = 0;
/** The attempt to reconnect that all waiting statements share. */
let recovery: Promise<void> | undefined;

/** Returns a random pause that doubles with each attempt, so that many processes do not reconnect at the same moment. */
function pauseMilliseconds(attempts: number): number {
  const limit = Math.min(DATABASE_RETRY_PAUSE_MILLISECONDS_MIN * 2 ** attempts, DATABASE_RETRY_PAUSE_MILLISECONDS_MAX);
  return limit * (0.5 + Math.random() / 2);
}

/** The last moment at which the server answered on a connection, on the clock of `performance.now()`. */
const answeredAt = new WeakMap<PoolClient, number>();
/** When a connection was last lost without FIN or RST. Connections that have not answered since are probably lost too. */
let suspectBefore = Number.NEGATIVE_INFINITY;

/**
 * Returns whether a connection of the pool still answers. A firewall that forgets a connection, or a machine that stops, ends it without
 * a message, and a statement sent there would have an unknown outcome. An empty query tests an idle connection, because it changes nothing.
 */
async function answers(client: PoolClient): Promise<boolean> {
  const now = performance.now();
  const last = answeredAt.get(client);
  if (last !== undefined && last < suspectBefore) return false;
  if (last !== undefined && now - last > DATABASE_IDLE_TRUSTED_MILLISECONDS) {
    const answered = client.query("").then(() => true);
    const alive = await until(now + DATABASE_CHECK_MILLISECONDS_MAX, answered).catch(() => false);
    if (!alive) {
      suspectBefore = now;
      return false;
    }
  }
  answeredAt.set(client, performance.now());
  return true;
}

/** Takes a connection that answers from the pool, after its first ReadyForQuery. An error means that no statement was sent. */
async function open(): Promise<PoolClient> {
  try {
    for (;;) {
      pool ??= openPool();
      const client = await pool.connect();
      if (await answers(client)) {
        failures = 0;
        return client;
      }
      log("warning", "an idle database connection does not answer", {});
      client.release(true);
    }
  } catch (error) {
    const reason = failure(error).reason ?? "";
    if (reason !== POOL_BUSY) failures++;
    log("error", "no database connection", { reason });
    throw error;
  }
}

/** Tries once to connect, after a pause. All statements that wait share this attempt. */
function recover(): Promise<void> {
  recovery ??= delay(pauseMilliseconds(failures), undefined, { ref: false })
    .then(open)
    .then((client) => client.release())
    .finally(() => {
      recovery = undefined;
    });
  return recovery;
}

/** Rejects at a time on the clock of `performance.now()`, unless the work ends before. */
async function until<T>(time: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error("The database did not come back in time.")), time - performance.now());
  });
  work.catch(() => undefined);
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/**
 * Takes a connection. Repeats failed attempts, because the server may be restarting.
 * @param giveUpAt when the last attempt ends, on the clock of `performance.now()`
 */
async function connect(giveUpAt: number): Promise<PoolClient> {
  for (;;) {
    try {
      // `openDatabase` opens a connection already. It is ready sooner than a new one.
      await opening;
      if (failures > 0) await until(giveUpAt, recover());
      return await open();
    } catch (error) {
      if (failures === 0 || performance.now() >= giveUpAt) throw error;
    }
  }
}

/** The first connection, while `openDatabase` opens it. */
let opening: Promise<void> | undefined;

/** Opens the first connection before a request needs it. Ignores a failure: the first statement connects again and reports it. */
export function openDatabase(): void {
  opening = open()
    .then((client) => client.release())
    .catch(() => undefined)
    .finally(() => {
      opening = undefined;
    });
}

/** States whether a statement is sent again after its connection was lost and it may have been committed. */
export type Repetition =
  /** It is sent again, because it makes no change that a user requested. */
  | "repeatable"
  /** It is sent again, because its key lets it take effect only once. */
  | "keyed"
  /** It is not sent again. The answer is `outcome-unknown`. */
  | "once";

/**
 * SQLSTATEs of a server that cannot work now and has rolled the statement back: class 53 resources, 57 operator intervention, 58 input and
 * output, XX internal errors, 28 login, 3D no such database; 25006 a read-only server, 55P03 a lock timeout.
 */
const UNAVAILABLE = /^(?:53|57|58|XX|28|3D)|^25006$|^55P03$/;
/** Class 40: a deadlock or a conflict of transactions. This transaction has been rolled back. */
const ROLLED_BACK = /^40/;
/** Class 08: a pooler lost its connection to the server, so the outcome is unknown. */
const LOST = /^08/;
/** The server ended a statement that waited too long for a locked row. */
const LOCK_NOT_AVAILABLE = "55P03";
/** The server ended a statement that ran too long. A second attempt would take as long again. */
const QUERY_CANCELED = "57014";
/**
 * The driver's message when no answer came within `query_timeout`. The server ends every statement earlier, so the connection is
 * lost. A second attempt uses a new connection.
 */
const READ_TIMEOUT = "Query read timeout";
/** The name of a prepared statement is unknown or taken: a pooler has changed to another connection of the server. */
const UNPREPARED = /^26000$|^42P05$/;

/** Returns the SQLSTATE of an error of the server. Undefined for the codes of Node, such as EPIPE. */
export function sqlState(error: unknown): string | undefined {
  const { code, severity } = (error ?? {}) as { code?: unknown; severity?: unknown };
  return typeof severity === "string" && typeof code === "string" ? code : undefined;
}

/** Returns whether a table changed after a statement was prepared. The server did not execute the statement. */
function isStalePlan(error: unknown): boolean {
  return sqlState(error) === "0A000" && failure(error).reason?.includes("cached plan") === true;
}

/** Makes the problem of a database that does not answer. */
export const unavailable = () =>
  new Problem("unavailable", "The database does not answer. The request had no effect; try again in a moment.", {
    headers: { "retry-after": String(DATABASE_RETRY_AFTER_SECONDS) },
  });

/** Another transaction locked a row for longer than ROW_WAIT_MILLISECONDS_MAX. Postgres has rolled the waiting statement back. */
export class RowLocked extends Problem {
  constructor() {
    super(
      "unavailable",
      "Another request holds the same data for too long. The request had no effect; try again in a moment.",
      {
        headers: { "retry-after": String(DATABASE_RETRY_AFTER_SECONDS) },
      },
    );
  }
}

/** Makes the problem of a statement whose connection was lost, and which may have been committed. */
export const outcomeUnknown = () =>
  new Problem(
    "outcome-unknown",
    "The connection was lost before the outcome was known. Repeat the request with the same Idempotency-Key. Without a key, read the balance or the order first.",
  );

/** Undefined until the first statement. */
let preparing: boolean | undefined;

/** Returns whether this process prepares statements by name. It stops to do so after an error of a pooler that loses names. */
function prepares(): boolean {
  preparing ??= settings().DATABASE_PREPARE;
  return preparing;
}

/**
 * Sends one statement. When the server refuses the prepared statement, it has not executed it, so the text is sent without a name.
 * Releases the connection, and closes it when it cannot be used again.
 */
async function send<Row>(client: PoolClient, name: string, text: string, values: unknown[]): Promise<Row[]> {
  const began = performance.now();
  let drop = false;
  try {
    try {
      return (await client.query(prepares() ? { name, text, values } : { text, values })).rows as Row[];
    } catch (error) {
      const unprepared = UNPREPARED.test(sqlState(error) ?? "");
      if (!unprepared && !isStalePlan(error)) throw error;
      if (unprepared && prepares()) {
        preparing = false;
        log("warning", "the pooler does not keep prepared statements; set DATABASE_PREPARE=false", {
          reason: failure(error).reason ?? "",
        });
      }
      // The connection would keep the stale plan under this name, so it is closed.
      drop = !unprepared;
      return (await client.query({ text, values })).rows as Row[];
    }
  } catch (error) {
    const state = sqlState(error);
    if (failure(error).reason === READ_TIMEOUT) suspectBefore = began;
    drop ||=
      state === undefined ||
      LOST.test(state) ||
      (UNAVAILABLE.test(state) && state !== LOCK_NOT_AVAILABLE && state !== QUERY_CANCELED);
    throw error;
  } finally {
    if (!drop) answeredAt.set(client, performance.now());
    client.release(drop);
  }
}

/**
 * Runs one prepared statement: one round trip, one transaction. Repeats it with pauses, for DATABASE_RETRY_MILLISECONDS_MAX from the
 * first failure, when it was not sent, was rolled back, or may be repeated.
 * @param name names the prepared statement; each name belongs to one text
 * @param caller the span of the call, or the statement that several calls share
 * @throws {Problem} `unavailable` when the database cannot work and the statement had no effect, `outcome-unknown` when the connection was
 *   lost after the statement was sent and the statement could not be repeated
 * @throws {NotSentError} when the statement has more bytes than a connection accepts
 */
export async function query<Row>(
  name: string,
  text: string,
  values: readonly unknown[],
  repetition: Repetition = "repeatable",
  caller?: Span | Statement,
): Promise<Row[]> {
  if (!isRecording()) return repeat(name, text, values, repetition);
  const statement = caller instanceof Statement ? caller : new Statement(name, text, caller ? [caller] : []);
  try {
    const rows = await repeat<Row>(name, text, values, repetition);
    statement.end();
    return rows;
  } catch (error) {
    statement.end(sqlState(error) ?? (error instanceof Problem ? error.code : "_OTHER"));
    throw error;
  }
}

/** Sends a statement until it has an answer, as {@link query} describes. */
async function repeat<Row>(
  name: string,
  text: string,
  values: readonly unknown[],
  repetition: Repetition,
): Promise<Row[]> {
  let outcomeIsKnown = true;
  let giveUpAt = Number.POSITIVE_INFINITY;
  const giveUp = () => (outcomeIsKnown || repetition === "repeatable" ? unavailable() : outcomeUnknown());
  for (let attempt = 0; ; attempt++) {
    const client = await connect(Math.min(giveUpAt, performance.now() + DATABASE_RETRY_MILLISECONDS_MAX)).catch(() => {
      throw giveUp();
    });
    try {
      return await send<Row>(client, name, text, values as unknown[]);
    } catch (error) {
      if (error instanceof NotSentError) throw error;
      const state = sqlState(error);
      // Without an SQLSTATE the server did not answer, so the outcome is unknown.
      const lost = state === undefined || LOST.test(state);
      if (state === LOCK_NOT_AVAILABLE && outcomeIsKnown) throw new RowLocked();
      if (!lost && !UNAVAILABLE.test(state) && !ROLLED_BACK.test(state)) throw error;
      log("warning", "a statement was cut off", { reason: failure(error).reason ?? "" });
      outcomeIsKnown &&= !lost;
      if (state === QUERY_CANCELED || (lost && repetition === "once")) throw giveUp();
      giveUpAt = Math.min(giveUpAt, performance.now() + DATABASE_RETRY_MILLISECONDS_MAX);
      const pause = pauseMilliseconds(attempt);
      if (performance.now() + pause >= giveUpAt) throw giveUp();
      await delay(pause);
    }
  }
}

/** Closes the pool after the statements in progress. Also safe before a pool was opened. */
export async function closeDatabase(): Promise<void> {
  const closing = pool;
  pool = undefined;
  if (closing === undefined) return;
  // The driver's pool waits without end for a connection whose login fails meanwhile. No statement needs more time than this.
  await until(performance.now() + QUERY_MILLISECONDS_MAX, closing.end()).catch(() => undefined);
}
