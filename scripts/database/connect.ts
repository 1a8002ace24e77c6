/** Connects to the database of a run as its owner. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Client } from "pg";
import { readDatabaseAddress } from "#kernel/database-url";
import { messageOf, Refusal, UsageError } from "../cli/errors.ts";
import { readFolder } from "../cli/options.ts";
import { connectTo } from "./client.ts";

/** Which database a command works on: a URL, else the run of a folder. */
export interface Target {
  /** `--database`. */
  readonly url: string | undefined;
  /** The absolute path of the folder of a run. */
  readonly folder: string;
  /** Whether the command line names the folder: then it takes precedence over DATABASE_ADMIN_URL. */
  readonly folderGiven: boolean;
}

/** Returns the target that the options of a command name. */
export function targetOf(options: { database: string | undefined; folder: string | undefined }): Target {
  const { database: url, folder } = options;
  return { url, folder: readFolder(folder), folderGiven: folder !== undefined };
}

/**
 * Checks the URL of a database that a person has written.
 * @param where the option or the variable, for the message
 * @throws {UsageError} when the text is not such a URL
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
 * Checks the URL of a pooler that a person has written. It may name no database, and a user such as `{role}.project-ref`.
 * @param where the option or the variable, for the message
 * @throws {UsageError} when the text is not such a URL
 */
export function readPoolerUrl(where: string, text: string): string {
  const complete = URL.canParse(text) ? new URL(text) : undefined;
  if (complete !== undefined && complete.pathname.length < 2) complete.pathname = "/any";
  readDatabaseUrl(where, complete?.href ?? text);
  return text;
}

/**
 * Returns the owner's URL: of `--database`, else of DATABASE_ADMIN_URL, else of the folder's run.
 * @throws {Refusal} when the folder has no run
 */
export async function adminUrl({ url: given, folder, folderGiven }: Target): Promise<string> {
  if (given !== undefined) return readDatabaseUrl("--database", given);
  const { DATABASE_ADMIN_URL: url } = process.env;
  if (url && !folderGiven) return readDatabaseUrl("DATABASE_ADMIN_URL", url);
  try {
    return await readFile(join(folder, "secrets", "database-admin", "url"), "utf8");
  } catch {
    throw new Refusal(
      `No Lotus has run in ${folder}. Start it with npm start, name its --folder, or give --database postgres://owner:password@host:port/name.`,
    );
  }
}

/**
 * Connects, does the work, disconnects.
 * @throws {Refusal} when the database does not answer
 */
export async function withAdmin<T>(target: Target, work: (client: Client) => Promise<T>): Promise<T> {
  const client = await connectTo(await adminUrl(target)).catch((error: unknown) => {
    const advice = target.url === undefined ? " Start Lotus: npm start." : "";
    throw new Refusal(`${messageOf(error)}${advice}`, { cause: error });
  });
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/** Returns the place of a database without user and password, such as `lotus at 127.0.0.1:5432`. */
export function placeOf(url: string): string {
  const { hostname, port, pathname } = new URL(url);
  return `${pathname.slice(1)} at ${hostname}:${port || "5432"}`;
}
