/** Reads the database for the console, as its owner. Every statement has a time limit, so that the console never holds a lock for long. */
import { Pool } from "pg";
import { connectionOf } from "../database/client.ts";
import { getDeadLetter, type Replayed, replay } from "../database/dead-letters.ts";
import type {
  AccountDetail,
  AccountRow,
  DatabaseFigures,
  DeadLetterRow,
  EntryRow,
  LedgerSummary,
  OutboxRow,
} from "./protocol.ts";
import { CONTENT_SHOWN_BYTES_MAX } from "./recorder.ts";

const CONNECTIONS_MAX = 2;
const IDLE_MILLISECONDS_MAX = 10_000;
const CONNECT_MILLISECONDS_MAX = 3_000;
const STATEMENT_MILLISECONDS_MAX = 5_000;
const OUTBOX_ROWS_MAX = 100;
const DEAD_LETTERS_MAX = 200;
const ACCOUNTS_MAX = 100;
const ENTRIES_MAX = 100;

/** SQL of a time as RFC 3339 with microseconds. */
const timeText = (column: string) => `to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`;

const ACCOUNT = `select a.id, u.email, a.balance::text as balance, a.entries::text as entries, encode(a.last_hash, 'hex') as "lastHash",
    ${timeText("a.opened_at")} as "openedAt"
  from billing.accounts a left join profile.users u on u.id = a.id`;

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
    this.#pool = new Pool({
      ...connectionOf(url),
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

  /** Returns the sums of the ledger and its last seal. */
  async ledger(): Promise<LedgerSummary> {
    const [kinds, counts, seals] = await Promise.all([
      this.rows<LedgerSummary["kinds"][number]>(
        `select kind, count(*)::text as accounts, sum(balance)::text as balance from billing.accounts group by kind order by kind`,
      ),
      this.rows<{ transfers: string; entries: string }>(
        `select (select count(*)::text from billing.transfers) as transfers, (select count(*)::text from billing.entries) as entries`,
      ),
      this.rows<NonNullable<LedgerSummary["seal"]>>(
        `select ${timeText("moment")} as moment, encode(hash, 'hex') as hash, accounts::text as accounts
         from billing.seals where sealed_at is not null order by seals.moment desc limit 1`,
      ),
    ]);
    return { kinds, transfers: "0", entries: "0", ...counts[0], seal: seals[0] ?? null };
  }

  /** Returns user accounts, the newest first. @param search a part of the email, or the start of the id */
  accounts(search: string): Promise<AccountRow[]> {
    return this.rows<AccountRow>(
      `${ACCOUNT} where a.kind = 'user' and ($2 = '' or strpos(lower(u.email), lower($2)) > 0 or starts_with(a.id::text, lower($2)))
       order by a.opened_at desc limit $1`,
      [ACCOUNTS_MAX, search],
    );
  }

  /** Returns an account with at most 100 entries before a number; undefined when it does not exist. */
  async account(id: string, before: string): Promise<AccountDetail | undefined> {
    const [account] = await this.rows<AccountRow>(`${ACCOUNT} where a.id::text = $1`, [id]);
    if (account === undefined) return undefined;
    const entries = await this.rows<EntryRow>(
      `select e.number::text as number, e.transfer_id as transfer, t.kind, t.reference,
         case when t.debit_account = e.account_id then t.credit_account else t.debit_account end as counterpart,
         e.amount::text as amount, e.balance_after::text as "balanceAfter", encode(e.hash, 'hex') as hash, ${timeText("t.created_at")} as at
       from billing.entries e join billing.transfers t on t.id = e.transfer_id
       where e.account_id = $1 and ($2 = '' or e.number < nullif($2, '')::bigint) order by e.number desc limit $3`,
      [account.id, before, ENTRIES_MAX],
    );
    return { account, entries };
  }

  /**
   * Ends the connections of the functions of this database. The owner may not call pg_terminate_backend for other roles, so the
   * processes receive the same signal from here: the server must run on this machine.
   */
  async cutFunctions(): Promise<void> {
    const backends = await this.rows<{ pid: number }>(
      `select a.pid from pg_stat_activity a join events.roles r on r.role = a.usename where a.datname = current_database()`,
    );
    for (const { pid } of backends) {
      try {
        process.kill(pid, "SIGTERM");
      } catch (error) {
        // The backend has ended meanwhile.
        if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
      }
    }
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
