/** Brings a database up to date: the roles of the services, their tables and functions, and the subscribers of each topic. */
import type { Client } from "pg";
import { connectTo, withoutNeonPooler } from "./client.ts";
import { type ConnectionBudget, checkBudget } from "./connections.ts";
import { inTransaction, migrateSchemas } from "./migration-runner.ts";
import { checkLogins, databaseOf, ensureRoles, requireRoles, rolesOf } from "./roles.ts";

export const STEPS = ["roles", "schema"] as const;
export type Step = (typeof STEPS)[number];

export interface MigrateOptions {
  /** The default is both. Without `roles` the roles must exist. */
  readonly steps?: readonly Step[];
  /** The services whose existing role gets the password of `passwords`. A new role always gets it. By default no existing role does. */
  readonly changePasswords?: readonly string[];
  /** The URL of the pooler that functions use, as roleUrl reads it. Its logins are checked. */
  readonly pooler?: string | undefined;
  /** Refuses a server that allows fewer connections. */
  readonly budget?: ConnectionBudget | undefined;
  /** Receives sentences about what the server did not accept. */
  readonly tell?: (news: string) => void;
}

async function serverProcess(client: Client): Promise<number | undefined> {
  return (await client.query<{ pid: number }>("select pg_backend_pid() as pid")).rows[0]?.pid;
}

/**
 * A transaction pooler gives each transaction to any session, and a migration uses settings and locks of one session. While
 * another client is in a transaction, the pooler must give a different session to one of the two clients.
 */
async function refusePooler(client: Client, url: string): Promise<void> {
  const other = await connectTo(url);
  try {
    const first = await serverProcess(client);
    await other.query("begin");
    const pooled = (await serverProcess(other)) === first || (await serverProcess(client)) !== first;
    await other.query("rollback");
    if (pooled)
      throw new Error(
        "The URL leads to a transaction pooler, which gives each statement to another session. Give the direct URL of the database.",
      );
  } finally {
    await other.end();
  }
}

/**
 * Migrates a database. Safe to repeat, and to run twice at the same time.
 * @param url connects as the owner of the database, who may create roles unless the roles exist
 * @param passwords the passwords of the roles, by service
 * @returns the names of the SQL files that were applied
 * @throws {Error} a sentence: a migration was edited, a statement failed, a role is missing or foreign, the URL is pooled
 */
export async function migrate(
  url: string,
  passwords: Readonly<Record<string, string>>,
  { steps = STEPS, changePasswords = [], tell = () => undefined, pooler, budget }: MigrateOptions = {},
): Promise<string[]> {
  const direct = withoutNeonPooler(url);
  const database = databaseOf(direct);
  const client = await connectTo(direct);
  let applied: string[] = [];
  try {
    await refusePooler(client, direct);
    if (budget !== undefined) await checkBudget(client, budget);
    if (steps.includes("roles"))
      await inTransaction(client, undefined, () => ensureRoles(client, database, passwords, { changePasswords, tell }));
    if (!steps.includes("schema")) return applied;
    await requireRoles(client, database);
    applied = await migrateSchemas(client, database, rolesOf(database), undefined, tell);
  } finally {
    await client.end();
  }
  await checkLogins(pooler === undefined ? url : direct, passwords, pooler);
  return applied;
}
