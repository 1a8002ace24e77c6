/**
 * Events that could not be handled, and why.
 *   npm run dead-letters                    lists them   [-- --url postgres://owner:password@host:port/name]
 *   npm run dead-letters -- show 3          one, whole
 *   npm run dead-letters -- replay 3        hands it to its subscriber again; `replay all` does so with every one
 */
import { parseArgs } from "node:util";
import type { Client } from "pg";
import { runCommand, UsageError } from "../cli/command.ts";
import { printable, table } from "../cli/output.ts";
import { withAdmin } from "./connect.ts";

const LISTED_MAX = 1000;
const REASON_LENGTH_MAX = 100;

interface DeadLetter {
  id: string;
  subscriber: string;
  reason: string;
  attributes: Record<string, string>;
  body: Buffer | null;
  moved_at: Date;
}

async function list(client: Client): Promise<void> {
  const { rows } = await client.query<DeadLetter>("select * from events.dead_letters order by id limit $1", [
    LISTED_MAX,
  ]);
  if (rows.length === 0) return console.log("There are no dead letters.");
  const cells = rows.map(({ id, moved_at, subscriber, attributes, reason }) => [
    id,
    moved_at.toISOString().slice(0, 19),
    subscriber,
    attributes.type ?? "",
    reason.slice(0, REASON_LENGTH_MAX),
  ]);
  console.log(table([["id", "moved at", "subscriber", "type", "reason"], ...cells]));
}

async function show(client: Client, id: string): Promise<void> {
  const { rows } = await client.query<DeadLetter>("select * from events.dead_letters where id::text = $1", [id]);
  const [letter] = rows;
  if (letter === undefined) throw new Error(`There is no dead letter ${id}.`);
  console.log(`${letter.subscriber} could not handle this. ${printable(letter.reason)}\n`);
  console.log(table([["attribute", "value"], ...Object.entries(letter.attributes)]));
  const lines = letter.body?.toString("utf8").split("\n") ?? ["(no data)"];
  console.log(`\n${lines.map(printable).join("\n")}`);
}

/** Returns how many were handed on again. */
export async function replay(client: Client, which: string): Promise<number> {
  const { rows } = await client.query<{ id: string }>(
    "select id from events.dead_letters where $1 = 'all' or id::text = $1 order by id",
    [which],
  );
  if (rows.length === 0 && which !== "all") throw new Error(`There is no dead letter ${which}.`);
  let replayed = 0;
  for (const { id } of rows) {
    try {
      const { rows } = await client.query<{ there: boolean }>("select events.replay($1) as there", [id]);
      // Somebody else may have replayed it meanwhile.
      if (rows[0]?.there) replayed++;
    } catch (error) {
      console.error(`Dead letter ${id} stays: it cannot be read by any subscriber (${(error as Error).message}).`);
      process.exitCode = 1;
    }
  }
  return replayed;
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({ allowPositionals: true, options: { url: { type: "string" } } });
  const [command = "list", id, ...rest] = positionals;
  const known = { list: 0, show: 1, replay: 1 }[command];
  if (
    known === undefined ||
    (known === 1) !== (id !== undefined) ||
    rest.length > 0 ||
    (id !== undefined && !/^\d+$/.test(id) && !(command === "replay" && id === "all"))
  ) {
    throw new UsageError(
      `"${positionals.join(" ")}" is not a command here. Say list, show ID, replay ID or replay all.`,
    );
  }
  await withAdmin(values.url, async (client) => {
    if (command === "list") return list(client);
    if (command === "show") return show(client, id ?? "");
    const replayed = await replay(client, id ?? "");
    console.log(`${replayed} put back into the outbox; the relay publishes them in about a minute.`);
  });
}

if (process.argv[1] === import.meta.filename) runCommand(main);
