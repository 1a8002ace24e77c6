import { afterEach, beforeEach, expect, inject, it, vi } from "vitest";

beforeEach(() => {
  vi.stubEnv("DATABASE_URL", inject("templateUrl").replace(/\/lotus$/, "/postgres"));
  vi.resetModules();
});
afterEach(async () => {
  await (await import("./database.ts")).closeDatabase();
  vi.unstubAllEnvs();
});

const PREPARED = "select name from pg_prepared_statements where name like 'warm%' order by name";

it("runs the statements of the function on the first connection, before a request needs it", async () => {
  const { openDatabase, query, warmUpWith } = await import("./database.ts");
  warmUpWith("warm one", "select $1::integer as n", [1]);
  warmUpWith("warm two", "select $1::text as n", ["a"]);
  openDatabase();
  expect(await query("prepared", PREPARED, [])).toEqual([{ name: "warm one" }, { name: "warm two" }]);
});

it("closes the connection after a failure, and the first request opens another one", async () => {
  const { openDatabase, query, warmUpWith } = await import("./database.ts");
  warmUpWith("warm one", "select 1", []);
  warmUpWith("warm two", "select 1 / 0", []);
  openDatabase();
  expect(await query("prepared", PREPARED, [])).toEqual([]);
});
