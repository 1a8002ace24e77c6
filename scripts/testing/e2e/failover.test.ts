/** The answers of a running Lotus while its Postgres fails, on a separate server. */
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { chmod, chown, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { escapeIdentifier } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Lotus, startLotus } from "../../local/lotus.ts";
import { newUser, type TestUser, untilAnswered } from "../lotus.ts";
import { type Network, startNetwork } from "../network.ts";
import { NOBODY, startTestPostgres, type TestPostgres, type TestStandby } from "../postgres-server.ts";

const DATABASE = "failover";
const FILL_CHUNK_BYTES = 64 * 1024;
const PAYMENTS_MAX = 500;
const run = promisify(execFile);
let postgres: TestPostgres;
let network: Network;
let standby: TestStandby | undefined;
let folder: string;
let lotus: Lotus;
let user: TestUser;

beforeAll(async () => {
  // A small table of locks, so that a test can fill it. Autovacuum takes locks at any moment.
  postgres = await startTestPostgres({ max_locks_per_transaction: "10", autovacuum: "off" });
  network = await startNetwork(postgres.port);
  folder = await mkdtemp(join(tmpdir(), "lotus-test-"));
  await chmod(folder, 0o711);
  const url = (await postgres.createDatabase(DATABASE)).replace(String(postgres.port), String(network.port));
  lotus = await startLotus({ port: 0, folder, built: true, databaseUrl: url });
  user = await newUser(lotus, 100_000);
});
afterAll(async () => {
  await lotus.stop();
  await network.stop();
  await standby?.stop();
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

/** A changed setting applies to new connections of a function only. */
async function configure(change: string): Promise<void> {
  await postgres.superuser.query(`alter database ${escapeIdentifier(DATABASE)} ${change}`);
  await terminateAll();
}

/** Expects that a payment is refused and changes nothing. Resolves to the balance; undefined when reads fail as well. */
async function expectUnavailable(): Promise<number | undefined> {
  const before: number | undefined = await balance();
  const { status, headers, body } = await pay();
  expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
  if (before !== undefined) expect(await balance()).toBe(before);
  return before;
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

  it("that is down for 1.2 s fails no request, with or without a key", async () => {
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

  it("that stays down is unavailable, and requests have no effect", async () => {
    const before = await balance();
    await configure("allow_connections false");
    const { status, headers, body } = await pay();
    expect([status, body.code, headers.get("retry-after")]).toEqual([503, "unavailable", "1"]);
    await configure("allow_connections true");
    expect(await balance()).toBe(before);
  });

  it("that is read-only after a failover is unavailable to writes, and answers reads", async () => {
    await configure("set default_transaction_read_only = on");
    expect(await expectUnavailable()).toBeTypeOf("number");
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

  it("without memory for another lock is unavailable", async () => {
    const holder = await postgres.connect(DATABASE);
    // Locks of a session outlive the statement that fails.
    const fill = () => holder.query("select pg_advisory_lock(n) from generate_series(1, 1000000) n");
    await expect(fill()).rejects.toMatchObject({ code: "53200" });
    await expectUnavailable();
    await holder.query("select pg_advisory_unlock_all()");
    await holder.end();
    expect((await pay()).status).toBe(200);
  });

  it("without disk space is unavailable to writes, and answers reads", async ({ skip }) => {
    const disk = join(postgres.folder, "disk");
    await mkdir(disk);
    try {
      await run("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]);
    } catch {
      skip("This user may not mount a small filesystem.");
    }
    try {
      const own = join(disk, "own");
      await mkdir(own, { mode: 0o700 });
      if (process.getuid?.() === 0) await chown(own, NOBODY, NOBODY);
      const admin = await postgres.connect(DATABASE);
      await admin.query(`create tablespace small location '${own}'`);
      await admin.query('alter table "order".orders set tablespace small');
      const filler = join(disk, "filler");
      const fill = () => writeFile(filler, Buffer.alloc(FILL_CHUNK_BYTES), { flag: "a" });
      await expect(
        (async () => {
          for (;;) await fill();
        })(),
      ).rejects.toMatchObject({ code: "ENOSPC" });
      // The last page of the table has room for some payments.
      let status = 200;
      for (let payments = 0; status === 200 && payments < PAYMENTS_MAX; payments++) ({ status } = await pay());
      expect(await expectUnavailable()).toBeTypeOf("number");
      await rm(filler);
      expect((await pay()).status).toBe(200);
      await admin.query('alter table "order".orders set tablespace pg_default');
      await admin.query("drop tablespace small");
      await admin.end();
    } finally {
      await run("umount", [disk]);
    }
  });

  it("that crashes and restarts loses no acknowledged payment, and makes none twice", async () => {
    const before = await balance();
    const keys = Array.from({ length: 8 }, () => randomUUID());
    const withKey = keys.map((key) => untilAnswered(user, "POST /order/pay?idSubscription=1", key));
    const withoutKey = keys.map(() => pay());
    await postgres.crash();
    await postgres.restart();
    expect((await Promise.all(withKey)).map(({ status }) => status)).toEqual(keys.map(() => 200));
    const outcomes = (await Promise.all(withoutKey)).map(({ status, body }) => (status === 200 ? "paid" : body.code));
    for (const outcome of outcomes) expect(["paid", "unavailable", "outcome-unknown"]).toContain(outcome);
    const payments = (before - (await balance())) / 10;
    const certain = keys.length + outcomes.filter((outcome) => outcome === "paid").length;
    expect(payments).toBeGreaterThanOrEqual(certain);
    expect(payments).toBeLessThanOrEqual(certain + outcomes.filter((outcome) => outcome === "outcome-unknown").length);
  });

  // The last test: the first server does not return, and Lotus stops while the standby serves it.
  it("whose standby takes over loses no acknowledged payment; before its promotion it answers reads only", async () => {
    standby = await postgres.startStandby();
    const paid = await pay();
    expect(paid.status).toBe(200);
    const before = paid.body.balance;
    network.lead(standby.port);
    await postgres.crash();
    expect(await expectUnavailable()).toBe(before);
    await standby.promote();
    expect((await pay()).status).toBe(200);
    expect(await balance()).toBe(before - 10);
  });
});
