import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, escapeIdentifier } from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, inject, it, vi } from "vitest";
import { freePorts } from "../process/ports.ts";
import { eventually } from "../testing/lotus.ts";
import { migrate } from "./migrate.ts";
import { databaseOf, ensureRoles, loginFaults, roleName, rolesOf, rolesSql, roleUrl } from "./roles.ts";
import { SERVICES } from "./sql.ts";

const PGBOUNCER = "/usr/sbin/pgbouncer";

const serverUrl = new URL(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
const passwordsOf = (password: string) => Object.fromEntries(SERVICES.map((service) => [service, password]));

let server: Client;
const databases: string[] = [];
const owners: string[] = [];
beforeAll(async () => {
  server = new Client({ connectionString: serverUrl.href });
  await server.connect();
});
afterEach(async () => {
  for (const name of databases) await server.query(`drop database ${escapeIdentifier(name)}`);
  const roles = databases.splice(0).flatMap((name) => [...rolesOf(name).values()]);
  for (const role of [...roles, ...owners.splice(0)])
    await server.query(`drop role if exists ${escapeIdentifier(role)}`);
});
afterAll(() => server.end());

/** A database of this test's own. Resolves to its owner's URL. */
async function newDatabase(name = `test_${randomUUID().replaceAll("-", "")}`, owner?: string): Promise<string> {
  await server.query(`create database ${escapeIdentifier(name)}${owner === undefined ? "" : ` owner ${owner}`}`);
  databases.push(name);
  const url = new URL(serverUrl);
  url.pathname = `/${encodeURIComponent(name)}`;
  return url.href;
}

/** Connects as the role of a service. Resolves to "connected", or to the SQLSTATE of the refusal. */
async function login(roleOf: string, service: string, password: string, at = roleOf): Promise<string> {
  const url = new URL(roleUrl(roleOf, service));
  url.pathname = new URL(at).pathname;
  url.password = password;
  const client = new Client({ connectionString: url.href });
  return client.connect().then(
    async () => {
      await client.end();
      return "connected";
    },
    (error: { code: string }) => error.code,
  );
}

describe("the name of a role", () => {
  it("contains the database and the service, has at most 63 bytes, and is different for each database", () => {
    expect(roleName("shop", "order")).toBe("lotus_shop_order");
    const [one, other] = ["ü".repeat(31), `${"ü".repeat(30)}x`].map((name) => roleName(name, "notification"));
    expect(Buffer.byteLength(one ?? "")).toBeLessThanOrEqual(63);
    expect(one).toMatch(/^lotus_ü+~[0-9a-f]{8}_notification$/);
    expect(other).not.toBe(one);
  });

  it("goes into the role's URL, in the form that a pooler asks for", () => {
    expect(roleUrl("postgres://owner:secret@host:6432/my%20shop?sslmode=require", "order")).toBe(
      "postgres://lotus_my%20shop_order@host:6432/my%20shop?sslmode=require",
    );
    expect(roleUrl("postgres://owner:secret@host/shop", "order", "postgres://{role}.project-ref@pooler:6543")).toBe(
      "postgres://lotus_shop_order.project-ref@pooler:6543/shop",
    );
  });
});

describe("two databases on one server", () => {
  it("keep their own passwords, and no role of one connects to the other", async () => {
    const [one, other] = [await newDatabase(), await newDatabase("test with a space")];
    await migrate(one, passwordsOf("password-of-one"));
    await migrate(other, passwordsOf("password-of-other"));
    for (const service of SERVICES) {
      expect(await login(one, service, "password-of-one")).toBe("connected");
      expect(await login(other, service, "password-of-other")).toBe("connected");
      // 42501: the role has no CONNECT privilege on the database.
      expect(await login(one, service, "password-of-one", other)).toBe("42501");
    }
  });
});

describe("a role that exists", () => {
  it("with the plain name of a service stays unchanged", async () => {
    const url = await newDatabase();
    await server.query(`create role billing login password 'of the company' connection limit 7`);
    owners.push("billing");
    const before = (await server.query("select * from pg_roles where rolname = 'billing'")).rows;
    await migrate(url, passwordsOf("password"), { changePasswords: SERVICES });
    expect((await server.query("select * from pg_roles where rolname = 'billing'")).rows).toEqual(before);
  });

  it("with the name of a Lotus role, but not made by Lotus, is refused and stays unchanged", async () => {
    const url = await newDatabase();
    const role = roleName(databaseOf(url), "billing");
    await server.query(`create role ${role} login password 'of-the-company'`);
    await expect(migrate(url, passwordsOf("password"), { changePasswords: SERVICES })).rejects.toThrow(
      `Lotus did not make the role ${role} of this server, and does not change it.`,
    );
    expect(await login(url, "billing", "of-the-company")).toBe("connected");
    const { rows } = await server.query("select rolname from pg_roles where rolname like $1", [
      `lotus_${databaseOf(url)}_%`,
    ]);
    expect(rows).toEqual([{ rolname: role }]);
  });

  it("keeps its password when another installation migrates, which fails with a message", async () => {
    const url = await newDatabase();
    await migrate(url, passwordsOf("first"));
    await expect(migrate(url, passwordsOf("second"))).rejects.toThrow(
      /^The role lotus_test_\w+_\w+ has another password than the secret database-\w+\./,
    );
    expect(await login(url, "order", "first")).toBe("connected");
    await migrate(url, passwordsOf("second"), { changePasswords: SERVICES });
    expect(await login(url, "order", "second")).toBe("connected");
  });

  it("logs in with the files of its secret; an error names each wrong file", async () => {
    const url = await newDatabase();
    await migrate(url, passwordsOf("password"));
    const folder = await mkdtemp(join(tmpdir(), "lotus-secrets-"));
    const write = async (service: string, key: string, text: string) => {
      await mkdir(join(folder, `database-${service}`), { recursive: true });
      await writeFile(join(folder, `database-${service}`, key), text);
    };
    for (const service of SERVICES) {
      await write(service, "url", roleUrl(url, service));
      await write(service, "password", "password");
    }
    expect(await loginFaults(folder)).toEqual([]);
    await write("order", "password", "another");
    await write("billing", "url", roleUrl(url, "billing").replace(/:\d+\//, ":1/"));
    expect((await loginFaults(folder)).sort()).toEqual([
      expect.stringMatching(/^The role lotus_test_\w+_billing cannot log in\. No server listens at \S+:1 /),
      expect.stringMatching(/^The role lotus_test_\w+_order has another password than the secret database-order\./),
    ]);
    await rm(join(folder, "database-order", "url"));
    await expect(loginFaults(folder)).rejects.toThrow("database-order/url cannot be read");
    await rm(folder, { recursive: true });
  });

  it("gets its settings again after it has changed them", async () => {
    const url = await newDatabase();
    await migrate(url, passwordsOf("password"));
    const role = new Client({
      connectionString: Object.assign(new URL(roleUrl(url, "order")), { password: "password" }).href,
    });
    await role.connect();
    await role.query("alter role current_user set statement_timeout = 0");
    await role.end();
    await migrate(url, passwordsOf("password"));
    const { rows } = await server.query("select setconfig from pg_db_role_setting where setrole = $1::regrole", [
      roleName(databaseOf(url), "order"),
    ]);
    expect(rows[0].setconfig).toContain("statement_timeout=10000");
  });
});

describe("an owner who may not create roles", () => {
  async function plainDatabase(): Promise<string> {
    const owner = `plain_${randomUUID().replaceAll("-", "")}`;
    await server.query(
      `create role ${owner} login password 'plain'; grant ${owner} to current_user with set true, inherit true`,
    );
    owners.push(owner);
    return Object.assign(new URL(await newDatabase(undefined, owner)), { username: owner, password: "plain" }).href;
  }

  it("migrates when an administrator has made the roles with the SQL of the error message", async () => {
    const url = await plainDatabase();
    await expect(migrate(url, passwordsOf("password"))).rejects.toThrow(
      /^This user may not make or alter the role lotus_test_\w+_events .* docs\/postgres\.md/,
    );
    const missing = await migrate(url, passwordsOf("password"), { steps: ["schema"] }).catch(({ message }) => message);
    expect(missing).toContain(rolesSql(databaseOf(url)));
    await server.query(rolesSql(databaseOf(url)).replaceAll("'…'", "'password'"));
    expect(await migrate(url, passwordsOf("password"), { steps: ["schema"] })).toContain("order/001-orders");
    // Both steps succeed as well: the roles have the mark and the settings, so no role is altered.
    expect(await migrate(url, passwordsOf("password"))).toEqual([]);
  });
});

describe("a password", () => {
  it("is absent from every SQL text, also when it is changed", async () => {
    const texts: string[] = [];
    const query = vi.spyOn(Client.prototype, "query");
    query.mockClear();
    const url = await newDatabase();
    await migrate(url, passwordsOf("very-secret-password"));
    await migrate(url, passwordsOf("very-secret-password"), { changePasswords: SERVICES });
    for (const [text, values] of query.mock.calls as unknown[][]) texts.push(JSON.stringify([text, values]));
    query.mockRestore();
    expect(texts.filter((text) => text.includes("SCRAM-SHA-256$1:"))).toHaveLength(2 * SERVICES.length);
    expect(texts.filter((text) => text.includes("very-secret-password"))).toEqual([]);
  });

  it("is sent as text to a server that refuses verifiers, and Lotus warns", async () => {
    const url = await newDatabase();
    const news: string[] = [];
    const query = Client.prototype.query;
    const refusing = vi.spyOn(Client.prototype, "query").mockImplementation(function (
      this: Client,
      ...args: unknown[]
    ) {
      const text = String(args[0]).includes("SCRAM-SHA-256$") ? "select 1 / 0 as only_plain_passwords" : args[0];
      return (query as (...all: unknown[]) => unknown).call(this, text, ...args.slice(1)) as never;
    });
    await migrate(url, passwordsOf("password"), { tell: (sentence) => void news.push(sentence) });
    refusing.mockRestore();
    expect(news).toHaveLength(SERVICES.length);
    expect(news[0]).toMatch(
      /^The server refused a SCRAM verifier \(.*\)\. It received the password of lotus_\w+ as text and may log it\.$/,
    );
    expect(await login(url, "order", "password")).toBe("connected");
  });

  it("is missing for an unknown service, and no role is created", async () => {
    await expect(ensureRoles(server, "nowhere", {}, { changePasswords: [], tell: () => undefined })).rejects.toThrow(
      "The role lotus_nowhere_events of the service events has no password.",
    );
  });
});

describe.skipIf(!existsSync(PGBOUNCER))("a transaction pooler", () => {
  it.each([1, 4])("with %i server connections is refused, and no lock stays behind", async (size) => {
    const url = new URL(await newDatabase());
    const folder = await mkdtemp(join(tmpdir(), "lotus-test-"));
    const [port = 0] = await freePorts(1);
    await writeFile(join(folder, "users"), `"${url.username}" "${url.password}"\n`);
    await writeFile(
      join(folder, "pool.ini"),
      `[databases]\n* = host=127.0.0.1 port=${url.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = ${port}
auth_type = plain\nauth_file = ${folder}/users\npool_mode = transaction\ndefault_pool_size = ${size}\nunix_socket_dir =\n`,
    );
    const asOther = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
    await chmod(folder, 0o755);
    const pooler = spawn(PGBOUNCER, ["-q", join(folder, "pool.ini")], { stdio: "ignore", ...asOther });
    try {
      const pooled = Object.assign(new URL(url), { port: String(port) }).href;
      await eventually(
        "the pooler listens",
        () =>
          new Promise<boolean>((resolve) => {
            const socket = connect(port, "127.0.0.1", () => resolve(true)).on("error", () => resolve(false));
            socket.end();
          }),
      );
      await expect(migrate(pooled, passwordsOf("password"))).rejects.toThrow(/^The URL leads to a transaction pooler/);
      const locks = await server.query(
        `select from pg_locks where locktype = 'advisory'
         and database = (select oid from pg_database where datname = $1)`,
        [databaseOf(url.href)],
      );
      expect(locks.rowCount).toBe(0);
    } finally {
      const ended = new Promise((resolve) => pooler.once("exit", resolve));
      pooler.kill("SIGKILL");
      await ended;
      await rm(folder, { recursive: true, force: true });
    }
    await migrate(url.href, passwordsOf("password"));
  });
});
