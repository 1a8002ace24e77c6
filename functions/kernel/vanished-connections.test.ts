import { randomUUID } from "node:crypto";
import { afterEach, beforeEach, expect, inject, it, vi } from "vitest";
import { type PostgresProxy, startPostgresProxy } from "../../scripts/chaos/postgres-proxy.ts";

/** A statement on a dead connection ends after one second more than this. */
const SHORT = { STATEMENT_MILLISECONDS_MAX: 0 };

let proxy: PostgresProxy;
beforeEach(async () => {
  const url = new URL(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
  const port = Number(url.port);
  proxy = await startPostgresProxy(() => port);
  url.port = String(proxy.port);
  vi.stubEnv("DATABASE_URL", url.href);
  vi.doMock("./limits.ts", async (original) => ({ ...(await original<object>()), ...SHORT }));
  vi.resetModules();
  vi.spyOn(process.stdout, "write").mockReturnValue(true);
});
afterEach(async () => {
  await (await import("./database.ts")).closeDatabase();
  await proxy.stop();
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  vi.doUnmock("./limits.ts");
});

it("answers a call over a new connection when its peer vanished without FIN and RST, and uses no connection of that time again", async () => {
  const { query } = await import("./database.ts");
  const { POOL_CONNECTIONS_MAX } = await import("./limits.ts");
  const all = () =>
    Promise.all(
      Array.from({ length: POOL_CONNECTIONS_MAX }, () =>
        query<{ pid: number }>(randomUUID(), "select pg_backend_pid() as pid, pg_sleep(0.2)::text", []).then(
          ([row]) => row?.pid,
        ),
      ),
    );
  const before = await all();
  expect(new Set(before).size).toBe(POOL_CONNECTIONS_MAX);
  proxy.disturb({ kind: "vanished" });
  proxy.disturb({ kind: "none" });
  const [first] = await query<{ pid: number }>("first", "select pg_backend_pid() as pid", []);
  const after = [first?.pid, ...(await all())];
  expect(after.filter((pid) => before.includes(pid))).toEqual([]);
});
