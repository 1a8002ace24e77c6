/** Commands that work on the database as its owner. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Client } from "pg";
import { readDatabaseAddress } from "#kernel/database-url";
import { UsageError } from "../cli/command.ts";
import { ROOT } from "../project/functions.ts";
import { connectTo } from "./client.ts";

/** Where a run on this machine keeps its secrets. */
export const SECRETS = join(ROOT, ".lotus/secrets");

/**
 * A database's URL, as a person has given it.
 * @param where the flag or the variable that it stands in
 * @throws {UsageError} when it is none
 */
export function readDatabaseUrl(where: string, text: string): string {
  try {
    readDatabaseAddress(text, process.env.DATABASE_CA_FILE || undefined);
  } catch (error) {
    if (!URL.canParse(text) || !/^postgres(ql)?:$/.test(new URL(text).protocol))
      throw new UsageError(`${where} must be a URL such as postgres://owner:password@host:port/name.`);
    throw new UsageError(`${where}: ${(error as Error).message}`);
  }
  return text;
}

/**
 * Which database a command works on: the one given, else DATABASE_ADMIN_URL, else that of the local run.
 * @throws {Error} a sentence, when there is none of them
 */
export async function adminUrl(given: string | undefined): Promise<string> {
  if (given !== undefined) return readDatabaseUrl("--url", given);
  const { DATABASE_ADMIN_URL: url } = process.env;
  if (url) return readDatabaseUrl("DATABASE_ADMIN_URL", url);
  try {
    return await readFile(join(SECRETS, "database-admin", "url"), "utf8");
  } catch {
    throw new Error("Say which database: start Lotus, or give --url postgres://owner:password@host:port/name.");
  }
}

/**
 * Connects, does the work, disconnects.
 * @throws {Error} a sentence, when nothing answers there
 */
export async function withAdmin<T>(given: string | undefined, work: (client: Client) => Promise<T>): Promise<T> {
  const url = await adminUrl(given);
  const client = await connectTo(url).catch((error: Error) => {
    throw given === undefined ? new Error(`${error.message} Is Lotus running? npm start.`, { cause: error }) : error;
  });
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}
