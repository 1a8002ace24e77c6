/** Reads and replays dead letters: events that no subscriber could handle, with the reason. */
import type { Client } from "pg";
import { messageOf, Refusal } from "../cli/errors.ts";

const LISTED_MAX = 1000;

/** One row of `events.dead_letters`. */
export interface DeadLetter {
  readonly id: string;
  readonly subscriber: string;
  readonly reason: string;
  readonly attributes: Readonly<Record<string, string>>;
  readonly body: Buffer | null;
  readonly moved_at: Date;
}

/** Returns the oldest dead letters, at most 1000. */
export async function listDeadLetters(client: Client): Promise<DeadLetter[]> {
  const text = "select * from events.dead_letters order by id limit $1";
  return (await client.query<DeadLetter>(text, [LISTED_MAX])).rows;
}

/** Returns one dead letter. @throws {Refusal} when its id is unknown */
export async function getDeadLetter(client: Client, id: string): Promise<DeadLetter> {
  const text = "select * from events.dead_letters where id::text = $1";
  const [letter] = (await client.query<DeadLetter>(text, [id])).rows;
  if (letter === undefined) throw new Refusal(`No dead letter has the id ${id}. List them: npm run dead-letters`);
  return letter;
}

/** What a replay did. */
export interface Replayed {
  /** Dead letters that are in the outbox again. */
  readonly count: number;
  /** A sentence for each dead letter that stays. */
  readonly failures: readonly string[];
}

/** Puts one dead letter, or `all`, back into the outbox. @throws {Refusal} when the id is unknown */
export async function replay(client: Client, which: string): Promise<Replayed> {
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
      failures.push(`Dead letter ${id} stays: no subscriber can read it (${messageOf(error)}).`);
    }
  }
  return { count, failures };
}
