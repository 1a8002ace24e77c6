/** Reads, replays and deletes dead letters: events that no subscriber could handle, with the reason. */
import type { ClientBase } from "pg";
import { messageOf, Refusal } from "../cli/errors.ts";

const LISTED_MAX = 1000;
/** Characters of a reason and of a type in the list. */
const LISTED_LENGTH_MAX = 100;
/** SQLSTATEs of data that is not JSON in UTF-8, and of missing data. */
const UNREADABLE_DATA = /^22/;
const NULL_DATA = "23502";

/** One row of `events.dead_letters`. */
export interface DeadLetter {
  readonly id: string;
  readonly subscriber: string;
  readonly reason: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly body: Buffer | null;
  readonly moved_at: Date;
}

/** A dead letter without its body: together the bodies may have a gigabyte. */
export type ListedDeadLetter = Pick<DeadLetter, "id" | "moved_at" | "subscriber" | "reason"> & {
  readonly type: string;
};

const LIST = `select id, moved_at, subscriber, coalesce(left(attributes ->> 'type', $2), '') as type, left(reason, $2) as reason
  from events.dead_letters order by id desc limit $1`;

/** Returns the newest dead letters, at most 1000, and how many older ones exist. */
export async function listDeadLetters(client: ClientBase): Promise<{ letters: ListedDeadLetter[]; more: number }> {
  const letters = (await client.query<ListedDeadLetter>(LIST, [LISTED_MAX, LISTED_LENGTH_MAX])).rows;
  if (letters.length < LISTED_MAX) return { letters, more: 0 };
  const text = "select count(*)::int as count from events.dead_letters";
  const count = (await client.query<{ count: number }>(text)).rows[0]?.count ?? 0;
  return { letters, more: Math.max(0, count - letters.length) };
}

/** Deletes one dead letter. @throws {Refusal} when its id is unknown */
export async function dropDeadLetter(client: ClientBase, id: string): Promise<void> {
  const { rowCount } = await client.query("delete from events.dead_letters where id::text = $1", [id]);
  if (rowCount === 0) throw new Refusal(`No dead letter has the id ${id}. List them: npm run dead-letters`);
}

/** Returns one dead letter. @throws {Refusal} when its id is unknown */
export async function getDeadLetter(client: ClientBase, id: string): Promise<DeadLetter> {
  const text = "select * from events.dead_letters where id::text = $1";
  const [letter] = (await client.query<DeadLetter>(text, [id])).rows;
  if (letter === undefined) throw new Refusal(`No dead letter has the id ${id}. List them: npm run dead-letters`);
  return letter;
}

/** The result of a replay. */
export interface Replayed {
  /** Dead letters that are in the outbox again. */
  readonly count: number;
  /** A sentence for each dead letter that stays. */
  readonly failures: readonly string[];
}

/** Puts one dead letter, or `all`, back into the outbox. @throws {Refusal} when the id is unknown */
export async function replay(client: ClientBase, which: string): Promise<Replayed> {
  const text = "select id from events.dead_letters where $1 = 'all' or id::text = $1 order by id";
  const { rows } = await client.query<{ id: string }>(text, [which]);
  if (rows.length === 0 && which !== "all")
    throw new Refusal(`No dead letter has the id ${which}. List them: npm run dead-letters`);
  let count = 0;
  const failures: string[] = [];
  for (const { id } of rows) {
    try {
      const replayed = await client.query<{ there: boolean }>("select events.replay($1) as there", [id]);
      // Another operator may have replayed it meanwhile.
      if (replayed.rows[0]?.there) count++;
    } catch (error) {
      const { code = "" } = error as { code?: string };
      const why = UNREADABLE_DATA.test(code)
        ? `its data is not JSON in UTF-8 (${messageOf(error)})`
        : code === NULL_DATA
          ? "it has no data"
          : messageOf(error);
      failures.push(`Dead letter ${id} stays: ${why}.`);
    }
  }
  return { count, failures };
}
