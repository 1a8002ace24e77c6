/** The connection budget: the connections of all functions together, against the limit of the server. */
import type { Client } from "pg";

/** The default limit of the pods of one function. */
export const PODS_MAX_DEFAULT = 3;
/** During a rollout the old and the new revision of a function run side by side. */
const REVISIONS_MAX = 2;
/** The migration's own connections, one login for each role, and commands of people. */
const JOB_CONNECTIONS = 12;

/** The pods and pools that open connections at the same time. */
export interface ConnectionBudget {
  /** Connections of all pods of all functions: the sum of pods × pool. */
  readonly connections: number;
  /** Revisions of a function during a rollout. */
  readonly revisions: number;
}

/** Returns the budget of functions, each with its pods and the connections of one pod. */
export function connectionBudget(
  functions: readonly { readonly pods: number; readonly pool: number }[],
): ConnectionBudget {
  return { connections: functions.reduce((sum, { pods, pool }) => sum + pods * pool, 0), revisions: REVISIONS_MAX };
}

/** Reads a budget as `writeBudget` writes it. Returns undefined for another text. */
export function readBudget(text: string): ConnectionBudget | undefined {
  const [, connections, revisions] = /^(\d+)x(\d+)$/.exec(text) ?? [];
  if (revisions === undefined) return undefined;
  return { connections: Number(connections), revisions: Number(revisions) };
}

/** Returns connections × revisions, such as "212x2". */
export function writeBudget({ connections, revisions }: ConnectionBudget): string {
  return `${connections}x${revisions}`;
}

/** Returns the connections that functions, revisions and jobs together may open. */
export function connectionsOf({ connections, revisions }: ConnectionBudget): number {
  return connections * revisions + JOB_CONNECTIONS;
}

/**
 * Compares a budget with the server's `max_connections`, its reserved connections, and the limit of the database.
 * @throws {Error} the arithmetic in a sentence, and the remedy
 */
export async function checkBudget(client: Client, budget: ConnectionBudget): Promise<void> {
  const { rows } = await client.query<{ most: number; reserved: number; database: number }>(
    `select current_setting('max_connections')::int as most,
       current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true), '0')::int as reserved,
       datconnlimit as database
     from pg_database where datname = current_database()`,
  );
  const [limits] = rows;
  if (limits === undefined) throw new Error("The server does not report its max_connections.");
  const server = limits.most - limits.reserved;
  const available = limits.database >= 0 ? Math.min(server, limits.database) : server;
  const needed = connectionsOf(budget);
  if (needed <= available) return;
  const { connections, revisions } = budget;
  const raise = [
    server < needed && `max_connections to ${needed + limits.reserved}`,
    limits.database >= 0 && limits.database < needed && `the connection limit of the database to ${needed}`,
  ].filter((part) => part !== false);
  throw new Error(
    `All pods may open ${connections} connections × ${revisions} revisions during a rollout + ${JOB_CONNECTIONS} for jobs = ${needed} connections. ` +
      `The server allows ${available} (max_connections ${limits.most} − ${limits.reserved} reserved${limits.database >= 0 ? `; the database at most ${limits.database}` : ""}). ` +
      `Raise ${raise.join(" and ")}, lower maxPods and connections of the functions to at most ${Math.max(0, Math.floor((available - JOB_CONNECTIONS) / revisions))} together, or put a pooler between.`,
  );
}
