/** Reads the database for the console, as its owner. Every statement has a time limit, so that the console never holds a lock for long. */
import { Pool } from "pg";
import { tlsOptions } from "#kernel/database-url";
import { addressOf } from "../database/client.ts";
import { getDeadLetter, type Replayed, replay } from "../database/dead-letters.ts";
import type { DatabaseFigures, DeadLetterRow, OutboxRow } from "./protocol.ts";
import { CONTENT_SHOWN_BYTES_MAX } from "./recorder.ts";

const CONNECTIONS_MAX = 2;
const IDLE_MILLISECONDS_MAX = 10_000;
const CONNECT_MILLISECONDS_MAX = 3_000;
const STATEMENT_MILLISECONDS_MAX = 5_000;
const OUTBOX_ROWS_MAX = 100;
const DEAD_LETTERS_MAX = 200;

/** An outbox row as headers and body of a CloudEvent. */
export interface WaitingEvent {
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

/** Reads the database of a run. */
export class ConsoleDatabase {
  readonly #pool: Pool;

  /** @param url the owner's URL */
  constructor(url: string) {
    const address = addressOf(url);
    const { host, port, user, password, database } = address;
    this.#pool = new Pool({
      host,
      port,
      user,
      password,
      database,
      ssl: tlsOptions(address) ?? false,
      max: CONNECTIONS_MAX,
      idleTimeoutMillis: IDLE_MILLISECONDS_MAX,
      connectionTimeoutMillis: CONNECT_MILLISECONDS_MAX,
      statement_timeout: STATEMENT_MILLISECONDS_MAX,
      allowExitOnIdle: true,
      application_name: "lotus console",
    });
    // A connection that is cut while it is idle; the next statement opens another.
    this.#pool.on("error", () => undefined);
  }

  /** Runs one statement and returns its rows. */
  async rows<Row extends object>(text: string, values: readonly unknown[] = []): Promise<Row[]> {
    return (await this.#pool.query<Row>(text, [...values])).rows;
  }

  /** Returns the depth and age of the outbox, the number of dead letters, and the trial balance. */
  async figures(): Promise<DatabaseFigures> {
    const [row] = await this.rows<DatabaseFigures>(
      `select o.depth::integer as "outboxDepth", coalesce(extract(epoch from clock_timestamp() - o.oldest) * 1000, 0)::float8 as "outboxAgeMilliseconds",
         (select count(*)::integer from events.dead_letters) as "deadLetters",
         (select coalesce(sum(balance), 0)::text from billing.accounts) as "trialBalance"
       from (select count(*) as depth, min(time) as oldest from events.outbox) o`,
    );
    if (row === undefined) throw new Error("the statement of the figures has no row");
    return row;
  }

  /** Returns the oldest rows of the outbox. */
  outbox(): Promise<OutboxRow[]> {
    return this.rows<OutboxRow>(
      `select id, topic, subject, to_char(time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as time, attempts, awaiting
       from events.outbox order by time limit $1`,
      [OUTBOX_ROWS_MAX],
    );
  }

  /** Returns the newest rows of the outbox as events. */
  async waiting(): Promise<WaitingEvent[]> {
    const rows = await this.rows<{ event: Record<string, unknown>; topic: string }>(
      `select e.envelope -> 'event' as event, e.envelope ->> 'topic' as topic
       from (select events.envelope(o) as envelope from events.outbox o order by o.time desc limit $1) e`,
      [OUTBOX_ROWS_MAX],
    );
    return rows.map(({ event: { data, ...attributes }, topic }) => ({
      headers: {
        ...Object.fromEntries(Object.entries(attributes).map(([name, value]) => [`ce-${name}`, String(value)])),
        "lotus-topic": topic,
      },
      body: Buffer.from(JSON.stringify(data)),
    }));
  }

  /** Returns the newest dead letters with at most 64 KiB of the content of each. */
  async deadLetters(): Promise<DeadLetterRow[]> {
    const rows = await this.rows<Omit<DeadLetterRow, "body"> & { body: Buffer | null }>(
      `select id, event_key as event, subscriber, reason, attributes,
         to_char(moved_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as "movedAt",
         substring(body from 1 for $2) as body, coalesce(octet_length(body), 0) as "bodyBytes"
       from events.dead_letters order by id desc limit $1`,
      [DEAD_LETTERS_MAX, CONTENT_SHOWN_BYTES_MAX],
    );
    return rows.map((row) => ({ ...row, body: row.body?.toString("utf8") ?? "" }));
  }

  /** Puts a dead letter, or `all`, back into the outbox. @throws {Refusal} when the id is unknown */
  async replay(which: string): Promise<Replayed> {
    const client = await this.#pool.connect();
    try {
      if (which !== "all") await getDeadLetter(client, which);
      return await replay(client, which);
    } finally {
      client.release();
    }
  }

  /** Ends the connections of the functions of this database. Returns how many. */
  async cutFunctions(): Promise<number> {
    const [row] = await this.rows<{ ended: number }>(
      `select count(pg_terminate_backend(a.pid))::integer as ended from pg_stat_activity a
       join events.roles r on r.role = a.usename where a.datname = current_database()`,
    );
    return row?.ended ?? 0;
  }

  /** Returns the topics that each service publishes. */
  publications(): Promise<{ service: string; topic: string }[]> {
    return this.rows("select service, topic from events.publications order by service, topic");
  }

  /** Closes the connections. */
  async stop(): Promise<void> {
    await this.#pool.end();
  }
}
