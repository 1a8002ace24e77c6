/**
 * Sabotages of Lotus: each breaks one thing in the database of the run, and never in the source tree. A run with a sabotage must end
 * with a violation, so they show that the checker can fail.
 */
import { Client } from "pg";
import { sendSignal } from "../process/child.ts";

export interface Sabotage {
  readonly name: string;
  /** The fault of the code that it imitates. */
  readonly summary: string;
  /** The invariants that the checker may name. */
  readonly violates: readonly string[];
  /** The faults that reveal it. Without any, the load alone reveals it. */
  readonly faults: readonly string[];
  /** Replaces text in functions: [function, text that must occur, replacement]. */
  readonly edits?: readonly (readonly [name: string, text: string | RegExp, replacement: string])[];
  /** Further statements, run as the superuser. */
  readonly statements?: readonly string[];
  /** Halts the processes of these kinds (`backend_type`) of the server, until the server ends them. */
  readonly halts?: readonly string[];
}

const NO_SUM_TRIGGERS = [
  "drop trigger keep_sum_after_insert on billing.accounts",
  "drop trigger keep_sum_after_update on billing.accounts",
];

export const SABOTAGES: readonly Sabotage[] = [
  {
    name: "no-dedupe",
    summary: "a second delivery of an event has a second effect",
    violates: ["I4"],
    faults: ["deliver-late", "republish"],
    statements: ["alter table notification.notifications drop constraint notifications_pkey"],
  },
  {
    name: "no-outbox-row",
    summary: "an event is published from memory only",
    violates: ["I4", "I6"],
    faults: ["lose-events"],
    edits: [
      [
        "events.emit_many",
        "return envelopes;",
        "delete from events.outbox o using unnest(envelopes) e where o.id = (e -> 'event' ->> 'id')::uuid; return envelopes;",
      ],
    ],
  },
  {
    name: "no-account-lock",
    summary: "two statements move money of one account at the same time",
    violates: ["I1", "I2"],
    faults: ["slow-database"],
    edits: [
      ["billing.move_unchecked", /order by l\.id for no key update(?: skip locked)?/g, "order by l.id"],
      ["billing.move_unchecked", " and (account_entries[w.n] is null or account_entries[w.n] > a.entries)", ""],
      // Time for the other statement, which a loaded machine gives by itself.
      ["billing.move_unchecked", "-- Later than every seal", "perform pg_sleep(0.02); -- Later than every seal"],
      [
        "billing.move_unchecked",
        "set balance = a.balance + account_changes[w.n]",
        "set balance = coalesce(account_balances[w.n], a.balance + account_changes[w.n])",
      ],
    ],
    statements: [
      ...NO_SUM_TRIGGERS,
      "drop trigger keep_contiguous on billing.entries",
      "alter table billing.entries drop constraint entries_pkey",
    ],
  },
  {
    name: "no-balance-check",
    summary: "money is taken from an account that does not have it",
    violates: ["I1"],
    faults: [],
    edits: [["billing.move_unchecked", "if account_balances[own] + sign * amount < 0 then", "if false then"]],
    statements: [
      "alter table billing.accounts drop constraint user_balance_within_limits",
      "alter table billing.entries drop constraint entries_balance_after_check",
    ],
  },
  {
    name: "no-idempotency-record",
    summary: "the answer to a keyed request is not stored",
    violates: ["I5", "I2"],
    faults: [],
    edits: [["events.record_answers_unchecked", "begin\n", "begin\n  return;\n"]],
  },
  {
    name: "key-ignored",
    summary: "a repeated request moves money again",
    violates: ["I2", "I5"],
    faults: [],
    edits: [
      ["events.record_answers_unchecked", "begin\n", "begin\n  return;\n"],
      ["billing.move_unchecked", "id := coalesce(keyed_ids[i], events.uuid_v7());", "id := events.uuid_v7();"],
    ],
  },
  {
    name: "dead-letter-dropped",
    summary: "an event that no subscriber can handle is acknowledged and dropped",
    violates: ["I7"],
    faults: ["poison-event"],
    edits: [["events.move_to_dead_letters", /insert into events\.dead_letters[^;]*;/, ""]],
  },
  {
    name: "refund-without-entry",
    summary: "a refund changes the balance and forgets its entry",
    violates: ["I1", "I2"],
    faults: [],
    edits: [
      [
        "billing.move_unchecked",
        "from generate_series(1, entries) n;",
        "from generate_series(1, entries) n where move_unchecked.kind <> 'refund';",
      ],
    ],
    statements: ["drop trigger keep_contiguous on billing.entries"],
  },
  {
    name: "refund-twice",
    summary: "an order is refunded at each request",
    violates: ["I3"],
    faults: [],
    edits: [["billing.move_unchecked", "elsif refunded_balances[i] is not null then", "elsif false then"]],
    statements: ["alter table billing.transfers drop constraint one_transfer_for_each_cause"],
  },
  {
    name: "one-sided-deposit",
    summary: "a deposit does not change the system account",
    violates: ["I2"],
    faults: [],
    edits: [
      [
        "billing.move_unchecked",
        "if other is null then system_change",
        "if other is null and kind <> 'deposit' then system_change",
      ],
    ],
    statements: NO_SUM_TRIGGERS,
  },
  {
    name: "relay-never-runs",
    summary: "the relay publishes nothing",
    violates: ["I7"],
    faults: ["lose-events"],
    edits: [
      ["events.claim", "order by o.attempts, o.attempted_at limit most", "order by o.attempts, o.attempted_at limit 0"],
    ],
  },
  {
    name: "answer-before-commit",
    summary: "a request is answered before its transaction is durable",
    violates: ["I2", "I6", "I4", "reads"],
    faults: ["stop-postgres-immediate"],
    statements: [
      "alter system set synchronous_commit = off",
      "alter system set wal_writer_delay = '10s'",
      "alter system set wal_writer_flush_after = '1GB'",
      "select pg_reload_conf()",
    ],
    // Each of them writes the log to the disk, and perhaps just before the fault.
    halts: ["walwriter", "background writer", "checkpointer"],
  },
  {
    name: "notification-stored-twice",
    summary: "one event stores two notifications",
    violates: ["I4"],
    faults: [],
    edits: [
      [
        "notification.store",
        "where r.id <> all (skipped)\n  order by r.id",
        "cross join lateral (values (r.id), (gen_random_uuid())) c (id) where r.id <> all (skipped)\n  order by r.id",
      ],
      ["notification.store", "select r.id, r.user_id,", "select c.id, r.user_id,"],
    ],
  },
  {
    name: "read-does-not-settle",
    summary: "a reader does not store the notifications that are on their way",
    violates: ["I4"],
    faults: ["refuse-events"],
    edits: [["events.unsettled", /return events\.unsettled_unchecked\([^;]*;/, "return '[]'::jsonb;"]],
  },
  {
    name: "wrong-balance",
    summary: "a read returns a balance that never existed",
    violates: ["reads"],
    faults: [],
    edits: [["billing.balance", "return found_balance;", "return found_balance + 1;"]],
  },
  {
    name: "failing-read",
    summary: "a read fails now and then",
    violates: ["5xx"],
    faults: [],
    edits: [["billing.balance", "return found_balance;", "return found_balance / (random() > 0.3)::integer;"]],
  },
  {
    name: "no-account",
    summary: "a registration does not open an account",
    violates: ["I6"],
    faults: [],
    edits: [
      ["billing.open_account", /insert into billing\.accounts[^;]*;/, ""],
      ["billing.open_accounts", /insert into billing\.accounts[^;]*;/, ""],
    ],
  },
];

/**
 * Applies a sabotage to a database.
 * @param url connects as the superuser
 * @returns the function that continues the processes of the server that the sabotage has halted
 * @throws {Error} a sentence, when the text that the sabotage replaces does not occur: the sabotage must follow the code
 */
export async function applySabotage(sabotage: Sabotage, url: string): Promise<() => void> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    for (const [name, text, replacement] of sabotage.edits ?? []) {
      const { rows } = await client.query("select pg_get_functiondef($1::regproc) as definition", [name]);
      const definition: string = rows[0].definition;
      const changed = definition.replace(text, replacement);
      if (changed === definition)
        throw new Error(`The sabotage ${sabotage.name} does not fit ${name}: the text ${text} does not occur.`);
      await client.query(changed);
    }
    for (const statement of sabotage.statements ?? []) await client.query(statement);
    const { rows } = await client.query("select pid from pg_stat_activity where backend_type = any ($1)", [
      sabotage.halts ?? [],
    ]);
    for (const { pid } of rows) sendSignal(pid, "SIGSTOP");
    return () => {
      for (const { pid } of rows) sendSignal(pid, "SIGCONT");
    };
  } finally {
    await client.end();
  }
}
