/** The scenario on each kind of Postgres that a company has. One server, a database for each kind. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { escapeIdentifier, escapeLiteral } from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { connectTo } from "../../database/client.ts";
import { migrate } from "../../database/migrate.ts";
import { readPasswords, roleName, rolesOf, rolesSql } from "../../database/roles.ts";
import { type Lotus, type LotusOptions, startLotus } from "../../local/lotus.ts";
import { startPgBouncer } from "../../local/pgbouncer.ts";
import { runScenario } from "../../scenario/run.ts";
import { ensureSecrets } from "../../secrets/local.ts";
import { call, newUser } from "../lotus.ts";
import { AUTHORITY, startTestPostgres, type TestPostgres } from "../postgres-server.ts";

let postgres: TestPostgres;
beforeAll(async () => {
  postgres = await startTestPostgres();
});
afterAll(() => postgres.stop());

const endings: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
  vi.unstubAllEnvs();
});

async function newFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-test-"));
  endings.push(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function start(databaseUrl: string, options: Partial<LotusOptions> = {}): Promise<Lotus> {
  const folder = options.folder ?? (await newFolder());
  const lotus = await startLotus({ port: 0, databaseUrl, built: true, ...options, folder });
  endings.push(() => lotus.stop());
  return lotus;
}

async function expectScenario(lotus: Lotus, users = 1): Promise<void> {
  expect(await runScenario({ baseUrl: lotus.url, users, quiet: true })).toMatchObject({ failed: 0, failures: [] });
}

/** Makes the roles as an administrator does, with the documented SQL. */
async function makeRoles(database: string, passwords: Readonly<Record<string, string>>): Promise<void> {
  await postgres.superuser.query(rolesSql(database));
  for (const [service, role] of rolesOf(database))
    await postgres.superuser.query(
      `alter role ${escapeIdentifier(role)} password ${escapeLiteral(passwords[service] ?? "")}`,
    );
}

describe("Lotus on Postgres", () => {
  it("that trusts its clients", async () => {
    await expectScenario(await start(await postgres.createDatabase("trusted")));
  });

  it("that asks for SCRAM over TLS, with a certificate of a private authority", async () => {
    const url = (await postgres.createDatabase("scram_tls")).replace("127.0.0.1", "localhost");
    await expect(start(`${url}?sslmode=verify-full`)).rejects.toThrow("Name its authority");
    const lotus = await start(`${url}?sslmode=verify-full&sslrootcert=${AUTHORITY}`);
    await expectScenario(lotus);
    const admin = await postgres.connect("scram_tls");
    const { rows } = await admin.query(
      "select distinct ssl from pg_stat_ssl join pg_stat_activity using (pid) where usename = $1",
      [roleName("scram_tls", "order")],
    );
    await admin.end();
    expect(rows).toEqual([{ ssl: true }]);
  });

  it("that asks for md5", async () => {
    const url = await postgres.createDatabase("md5");
    const folder = await newFolder();
    await ensureSecrets(join(folder, "secrets"), url);
    const passwords = await readPasswords(join(folder, "secrets"));
    await migrate(url, passwords);
    await postgres.superuser.query("set password_encryption = md5");
    for (const [service, role] of rolesOf("md5"))
      await postgres.superuser.query(`alter role ${role} password ${escapeLiteral(passwords[service] ?? "")}`);
    await postgres.superuser.query("reset password_encryption");
    await expectScenario(await start(url, { folder }));
  });

  it("whose owner may not create roles: an administrator made them", async () => {
    const url = await postgres.createDatabase("plain", "nocreaterole");
    const folder = await newFolder();
    await ensureSecrets(join(folder, "secrets"), url);
    await expect(start(url, { folder })).rejects.toThrow("may not make or alter the role");
    await makeRoles("plain", await readPasswords(join(folder, "secrets")));
    await expectScenario(await start(url, { folder }));
  });

  it("whose password and name have to be percent-encoded", async () => {
    await expectScenario(await start(await postgres.createDatabase("my shop", "createrole", "p@/#%:?& w")));
  });

  it("that has two databases of Lotus: no role of one can enter the other", async () => {
    const folders = [await newFolder(), await newFolder()] as const;
    const urls = [await postgres.createDatabase("production"), await postgres.createDatabase("staging")] as const;
    const production = await start(urls[0], { folder: folders[0] });
    const staging = await start(urls[1], { folder: folders[1] });
    const user = await newUser(production, 100);
    await expectScenario(staging);
    await expectScenario(production);
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 100 });
    expect((await call(staging, "GET /billing/balance", { token: user.token })).status).toBe(401);
    const passwords = await readPasswords(join(folders[1], "secrets"));
    const { tryLogin } = await import("#kernel/database");
    const { addressOf } = await import("../../database/client.ts");
    const foreign = { ...addressOf(urls[0]), user: roleName("staging", "order"), password: passwords.order };
    await expect(tryLogin(foreign)).rejects.toThrow("permission denied for database");
  });
});

describe.skipIf(process.env.PGBOUNCER === "skip")("Lotus behind PgBouncer in transaction mode", () => {
  it.each([
    ["prepares no statements when DATABASE_PREPARE is false", "false"],
    ["notices a pooler that does not keep prepared statements", "true"],
  ])("%s", async (_, prepare) => {
    const database = `pooled_${prepare}`;
    const url = await postgres.createDatabase(database);
    const folder = await newFolder();
    await ensureSecrets(join(folder, "secrets"), url);
    const passwords = await readPasswords(join(folder, "secrets"));
    const users = [...rolesOf(database)].map(([service, role]) => [role, passwords[service] ?? ""] as const);
    const pooler = await startPgBouncer(postgres.port, new Map([...users, [database, "owner"]]));
    endings.push(() => pooler.stop());
    const poolerUrl = `postgres://127.0.0.1:${pooler.port}`;
    await expect(start(url.replace(String(postgres.port), String(pooler.port)), { folder })).rejects.toThrow("pooler");
    vi.stubEnv("DATABASE_PREPARE", prepare);
    const lines: string[] = [];
    const lotus = await start(url, { folder, pooler: poolerUrl, onLine: (_name, line) => lines.push(line) });
    // Requests at the same time use several connections of the pooler.
    await expectScenario(lotus, 4);
    await expectScenario(lotus);
    const noticed = lines.filter((line) => line.includes("DATABASE_PREPARE=false"));
    expect(noticed.length > 0).toBe(prepare === "true");
  });

  it.each([
    ["the last used", "0"],
    ["the next", "1"],
  ])("refuses to migrate through it when it gives each transaction %s session", async (_, server_round_robin) => {
    const database = `pooled_${server_round_robin}`;
    const url = await postgres.createDatabase(database);
    const pooler = await startPgBouncer(postgres.port, new Map([[database, "owner"]]), { server_round_robin });
    endings.push(() => pooler.stop());
    const pooled = url.replace(String(postgres.port), String(pooler.port));
    // Several sessions are idle.
    const clients = await Promise.all([1, 2, 3].map(() => connectTo(pooled)));
    for (const sql of ["begin", "rollback"]) await Promise.all(clients.map((client) => client.query(sql)));
    await Promise.all(clients.map((client) => client.end()));
    await expect(migrate(pooled, {})).rejects.toThrow("leads to a transaction pooler");
  });
});
