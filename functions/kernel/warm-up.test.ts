import { afterEach, beforeEach, expect, inject, it, vi } from "vitest";

beforeEach(() => {
  vi.doMock("./limits.ts", async (original) => ({
    ...(await original<object>()),
    DATABASE_WARM_UP_MILLISECONDS_MAX: 100,
  }));
  vi.stubEnv("DATABASE_URL", inject("templateUrl").replace(/\/lotus$/, "/postgres"));
  vi.resetModules();
});
afterEach(async () => {
  await (await import("./database.ts")).closeDatabase();
  vi.unstubAllEnvs();
  vi.doUnmock("./limits.ts");
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

it("does not keep a request waiting when the server does not answer", async () => {
  const { openDatabase, query, warmUpWith } = await import("./database.ts");
  warmUpWith("warm one", "select pg_sleep(600)::text", []);
  openDatabase();
  expect(await query("prepared", PREPARED, [])).toEqual([]);
});
