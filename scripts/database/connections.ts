/** The connection budget: the connections of all functions together, against the limit of the server. */
import type { Client } from "pg";

/** Pods of one function at most, when an environment says nothing else. */
export const PODS_MAX_DEFAULT = 3;
/** During a rollout the old and the new revision of a function run side by side. */
const REVISIONS_MAX = 2;
/** The migration's own connections, one login for each role, and commands of people. */
const JOB_CONNECTIONS = 12;

/** The pods and pools that open connections at the same time. */
export interface ConnectionBudget {
  /** Functions that use the database. */
  readonly functions: number;
  /** Pods of each function. */
  readonly pods: number;
  /** Connections of each pod. */
  readonly pool: number;
  /** Revisions of a function during a rollout. */
  readonly revisions: number;
}

/** The budget of a deployment. */
export function clusterBudget(functions: number, pods: number, pool: number): ConnectionBudget {
  return { functions, pods, pool, revisions: REVISIONS_MAX };
}

/** Reads a budget as `writeBudget` writes it. Returns undefined when the text is not a budget. */
export function readBudget(text: string): ConnectionBudget | undefined {
  const [, functions, pods, pool, revisions] = /^(\d+)x(\d+)x(\d+)x(\d+)$/.exec(text) ?? [];
  if (revisions === undefined) return undefined;
  return { functions: Number(functions), pods: Number(pods), pool: Number(pool), revisions: Number(revisions) };
}

/** Functions × pods × connections × revisions, such as "16x3x4x2". */
export function writeBudget({ functions, pods, pool, revisions }: ConnectionBudget): string {
  return [functions, pods, pool, revisions].join("x");
}

/** Connections that everything together may open. */
export function connectionsOf({ functions, pods, pool, revisions }: ConnectionBudget): number {
  return functions * pods * pool * revisions + JOB_CONNECTIONS;
}

/** The largest numbers of pods and of connections a pod that fit, or undefined when even one of each does not. */
function fitting({ functions, revisions }: ConnectionBudget, available: number) {
  for (let pool = 4; pool >= 1; pool--) {
    const pods = Math.floor((available - JOB_CONNECTIONS) / (functions * pool * revisions));
    if (pods >= 1) return { pods, pool };
  }
  return undefined;
}

/**
 * Compares a budget with the server's `max_connections`, its reserved connections, and the limit of the database.
 * @throws {Error} the arithmetic in a sentence, and what to change
 */
export async function checkBudget(client: Client, budget: ConnectionBudget): Promise<void> {
  const { rows } = await client.query<{ most: number; reserved: number; database: number }>(
    `select current_setting('max_connections')::int as most,
       current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true), '0')::int as reserved,
       datconnlimit as database
     from pg_database where datname = current_database()`,
  );
  const [limits] = rows;
  if (limits === undefined) throw new Error("The server does not tell its max_connections.");
  const server = limits.most - limits.reserved;
  const available = limits.database >= 0 ? Math.min(server, limits.database) : server;
  const needed = connectionsOf(budget);
  if (needed <= available) return;
  const { functions, pods, pool, revisions } = budget;
  const fits = fitting(budget, available);
  throw new Error(
    `Functions may open ${functions} functions × ${pods} pods × ${pool} connections × ${revisions} revisions + ${JOB_CONNECTIONS} for jobs = ${needed} connections. ` +
      `The server allows ${available} (max_connections ${limits.most} − ${limits.reserved} reserved${limits.database >= 0 ? `; the database at most ${limits.database}` : ""}). ` +
      `Raise max_connections to ${needed + limits.reserved}${fits === undefined ? "" : `, deploy with --pods ${fits.pods} --pool ${fits.pool}`}, or put a pooler between: --pooler URL.`,
  );
}
