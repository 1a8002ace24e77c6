/** The answers of a running Lotus while its Postgres fails, on a separate server. */
import { randomUUID } from "node:crypto";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { escapeIdentifier } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Lotus, startLotus } from "../../local/lotus.ts";
import { newUser, type TestUser } from "../lotus.ts";
import { startTestPostgres, type TestPostgres } from "../postgres-server.ts";

const DATABASE = "failover";
let postgres: TestPostgres;
let folder: string;
let lotus: Lotus;
let user: TestUser;

beforeAll(async () => {
  postgres = await startTestPostgres();
  folder = await mkdtemp(join(tmpdir(), "lotus-test-"));
  await chmod(folder, 0o711);
  lotus = await startLotus({ port: 0, folder, built: true, databaseUrl: await postgres.createDatabase(DATABASE) });
  user = await newUser(lotus, 1_000);
});
afterAll(async () => {
  await lotus.stop();
  await postgres.stop();
  await rm(folder, { recursive: true, force: true });
});

const pay = (key?: string) =>
  user.call("POST /order/pay?idSubscription=1", key === undefined ? {} : { headers: { "idempotency-key": key } });

const balance = async () => (await user.call("GET /billing/balance")).body.balance as number;

const terminateAll = () =>
  postgres.superuser.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and usename <> current_user",
    [DATABASE],
  );

/** A new connection of a function meets a changed setting, an old one does not. */
async function configure(change: string): Promise<void> {
  await postgres.superuser.query(`alter database ${escapeIdentifier(DATABASE)} ${change}`);
  await terminateAll();
}

async function expectUnavailable(): Promise<void> {
  const before = await balance().catch(() => undefined);
  const { status, headers, body } = await pay();
  expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
  if (before !== undefined) expect(await balance()).toBe(before);
}

describe("a Postgres", () => {
  it("whose backends are all terminated fails no request", async () => {
    const before = await balance();
    for (let times = 0; times < 3; times++) {
      await terminateAll();
      expect((await pay(randomUUID())).status).toBe(200);
    }
    expect(await balance()).toBe(before - 30);
  });

  it("that is gone for 1.2 s fails no request, with or without a key", async () => {
    const before = await balance();
    await configure("allow_connections false");
    const answers = Promise.all([pay(), pay(randomUUID()), user.call("GET /order/list")]);
    const back = new Promise((resolve) => setTimeout(resolve, 1_200)).then(() =>
      postgres.superuser.query(`alter database ${DATABASE} allow_connections true`),
    );
    expect((await answers).map(({ status }) => status)).toEqual([200, 200, 200]);
    await back;
    expect(await balance()).toBe(before - 20);
  });

  it("that stays away is unavailable, and changes nothing", async () => {
    const before = await balance();
    await configure("allow_connections false");
    const { status, headers, body } = await pay();
    expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
    await configure("allow_connections true");
    expect(await balance()).toBe(before);
  });

  it("that is read-only after a failover is unavailable to writes, and answers reads", async () => {
    await configure("set default_transaction_read_only = on");
    await expectUnavailable();
    await configure("reset default_transaction_read_only");
    expect((await pay()).status).toBe(200);
  });

  it("with too many connections is unavailable", async () => {
    await configure("connection limit 0");
    const { status, headers, body } = await pay();
    expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
    await configure("connection limit -1");
    expect((await pay()).status).toBe(200);
  });

  it("that ends a statement at its timeout is unavailable, and has rolled back", async () => {
    const admin = await postgres.connect(DATABASE);
    const { rows } = await admin.query("select rolname from pg_roles where rolname like $1", [
      `lotus\\_${DATABASE}\\_order`,
    ]);
    const role = escapeIdentifier(rows[0].rolname);
    await admin.query(`alter role ${role} set statement_timeout = 200; alter role ${role} set lock_timeout = 0`);
    await terminateAll();
    await admin.query("begin");
    await admin.query("select from billing.accounts for update");
    const { status, headers, body } = await pay();
    await admin.query("rollback");
    await admin.query(`alter role ${role} set statement_timeout = 10000; alter role ${role} set lock_timeout = 1000`);
    await admin.end();
    await terminateAll();
    expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
    expect((await pay()).status).toBe(200);
  });
});
