/** docs/operations.md: its SQL runs in the present schema, and every section says where its steps ran. */
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { ROOT } from "../project/paths.ts";

const guide = await readFile(join(ROOT, "docs/operations.md"), "utf8");
const statements = [...guide.matchAll(/`(select [^`]+)`/g)].map(([, sql = ""]) => sql);
const tasks = guide.slice(0, guide.indexOf("\n## Alerts")).split(/^## /m).slice(1);

describe("docs/operations.md", () => {
  const postgres = inject("templateUrl").replace(/\/lotus$/, "/postgres");
  const name = `test_${randomUUID().replaceAll("-", "")}`;
  let server: Client;
  let database: Client;
  beforeAll(async () => {
    server = new Client({ connectionString: postgres });
    await server.connect();
    await server.query(`create database ${name} template lotus`);
    database = new Client({ connectionString: postgres.replace(/\/postgres$/, `/${name}`) });
    await database.connect();
  });
  afterAll(async () => {
    await database.end();
    await server.query(`drop database ${name}`);
    await server.end();
  });

  it("has statements", () => expect(statements.length).toBeGreaterThan(1));

  it.each(statements)("has a statement that runs: %s", async (sql) => {
    await expect(database.query(sql)).resolves.toBeDefined();
  });

  it.each(tasks.map((text) => [text.split("\n")[0], text]))("says where the steps of %s ran", (_, text) => {
    expect(text).toMatch(/\*\*(?:Cluster|Local run|Not run)\*\*/);
  });
});
