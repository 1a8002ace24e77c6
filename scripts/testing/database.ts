/** A database of a test's own, made from the template. */
import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { inject } from "vitest";
import { rolesOf } from "../database/roles.ts";
import { waitFor } from "../process/wait.ts";

const CLOSE_MILLISECONDS_MAX = 100_000;
const CLOSE_STEP_MILLISECONDS = 10;

export interface TestDatabase {
  readonly name: string;
  /** The owner's URL. */
  readonly url: string;
  /** Waits for the end of all connections, then removes the database and its roles. */
  drop(): Promise<void>;
}

/**
 * Copies the template. A test never connects to the template itself: Postgres copies only a database without connections, and
 * another test may copy it at that moment.
 */
export async function createTestDatabase(): Promise<TestDatabase> {
  const template = inject("templateUrl");
  const name = `test_${randomUUID().replaceAll("-", "")}`;
  const server = new Client({ connectionString: template.replace(/\/lotus$/, "/postgres") });
  await server.connect();
  await server.query(`create database ${name} template lotus`);
  return {
    name,
    url: template.replace(/\/lotus$/, `/${name}`),
    async drop() {
      // The sessions of functions that were killed end by themselves; the owner may not end those of other roles.
      const look = async () =>
        (await server.query("select from pg_stat_activity where datname = $1", [name])).rowCount === 0;
      const limits = { millisecondsMax: CLOSE_MILLISECONDS_MAX, stepMilliseconds: CLOSE_STEP_MILLISECONDS };
      if (!(await waitFor(look, limits))) throw new Error(`Connections to the database ${name} stay open.`);
      await server.query(`drop database ${name}`);
      await server.query(`drop role if exists ${[...rolesOf(name).values()].join(", ")}`);
      await server.end();
    },
  };
}
