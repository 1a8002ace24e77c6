import { writeFile } from "node:fs/promises";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "@neondatabase/serverless";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { type Network, startNetwork } from "../../scripts/testing/network.ts";
import {
  AUTHORITY,
  OTHER_AUTHORITY,
  startTestPostgres,
  type TestPostgres,
} from "../../scripts/testing/postgres-server.ts";
import type { Repetition } from "./database.ts";
import { readDatabaseAddress } from "./database-url.ts";

/** Limits for servers that never answer well. The tests would wait for the real ones again and again. */
const SHORT = {
  DATABASE_CONNECT_MILLISECONDS_MAX: 500,
  POOL_WAIT_MILLISECONDS_MAX: 500,
  DATABASE_RETRY_MILLISECONDS_MAX: 200,
};
/** A statement must end within this time: the connect timeout, the repetitions, and a busy machine. */
const MILLISECONDS_MAX = 1_500;
const REPETITIONS: Repetition[] = ["repeatable", "keyed", "once"];

/** database.ts keeps one pool for the process, so each test loads it again. */
async function load(url: string, limits: object = {}) {
  vi.doMock("./limits.ts", async (original) => ({ ...(await original<object>()), ...limits }));
  vi.stubEnv("DATABASE_URL", url);
  return import("./database.ts");
}

/** Keeps the log lines of this process until `vi.restoreAllMocks`. */
function readLog(): string[] {
  const lines: string[] = [];
  vi.spyOn(process.stdout, "write").mockImplementation((text) => lines.push(String(text)) > 0);
  return lines;
}

beforeEach(() => {
  vi.resetModules();
});
afterEach(async () => {
  await (await import("./database.ts")).closeDatabase();
  vi.unstubAllEnvs();
  vi.doUnmock("./limits.ts");
});

const servers: Server[] = [];
const sockets = new Set<Socket>();

/** Starts a server on 127.0.0.1. Resolves to the URL of a database there. */
async function serve(onConnection: (socket: Socket) => void): Promise<string> {
  const server = createServer((socket) => {
    sockets.add(socket);
    onConnection(socket.on("error", () => undefined));
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `postgres://someone:secret@127.0.0.1:${(server.address() as AddressInfo).port}/lotus`;
}

afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  sockets.clear();
  for (const server of servers.splice(0)) await new Promise((resolve) => server.close(resolve));
});

describe("a socket whose server does not read", () => {
  const MEBIBYTE = 1024 * 1024;

  /** Opens a socket to a server that reads nothing. */
  async function openSocket() {
    const url = await serve((socket) => socket.pause());
    vi.doMock("./limits.ts", async (original) => ({
      ...(await original<object>()),
      DATABASE_BUFFERED_BYTES_MAX: 16 * MEBIBYTE,
    }));
    const { NotSentError, postgresSocket } = await import("./postgres-socket.ts");
    const socket = new (postgresSocket(readDatabaseAddress(url)))();
    await new Promise((resolve) => socket.addEventListener("open", resolve));
    const failed = new Promise((resolve) => socket.addEventListener("error", resolve));
    const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
    return { socket, failed, closed, NotSentError };
  }

  it("counts the bytes that wait to be sent", async () => {
    const { socket } = await openSocket();
    expect(socket.bufferedAmount).toBe(0);
    socket.send(new Uint8Array(MEBIBYTE));
    expect(socket.bufferedAmount).toBe(MEBIBYTE);
    socket.send(new Uint8Array(15 * MEBIBYTE));
    await new Promise((resolve) => setImmediate(resolve));
    // The kernel keeps some of them.
    expect(socket.bufferedAmount).toBeGreaterThan(0);
    expect(socket.bufferedAmount).toBeLessThanOrEqual(16 * MEBIBYTE);
    expect(socket.readyState).toBe(1);
    socket.close();
  });

  it("sends no byte of a statement above the limit, and ends with an error message", async () => {
    const { socket, failed, closed, NotSentError } = await openSocket();
    socket.send(new Uint8Array(10 * MEBIBYTE));
    await new Promise((resolve) => setImmediate(resolve));
    const waiting = socket.bufferedAmount;
    socket.send(new Uint8Array(10 * MEBIBYTE));
    const error = await failed;
    expect(error).toBeInstanceOf(NotSentError);
    expect((error as Error).message).toMatch(
      new RegExp(
        `^A statement of 10485760 bytes was not sent to the database at 127.0.0.1:\\d+: ${waiting} bytes wait already, and 16777216 is the limit.$`,
      ),
    );
    await closed;
    expect(socket.readyState).toBe(3);
  });

  it("closes within half a second, and drops the bytes", async () => {
    const { socket, closed } = await openSocket();
    socket.send(new Uint8Array(15 * MEBIBYTE));
    socket.close();
    await closed;
    expect(socket.readyState).toBe(3);
  });
});

describe("a server that does not finish a login", () => {
  /** Runs a statement of each kind. Every one must be answered as unavailable, in time, and logged with the reason. */
  async function expectUnavailable(url: string, reason = "no database connection"): Promise<void> {
    const { query } = await load(url, SHORT);
    const lines = readLog();
    const began = performance.now();
    const outcomes = REPETITIONS.map((repetition) =>
      query(repetition, "select 1", [], repetition).then(
        () => "answered",
        ({ code, headers }) => `${code} ${headers?.["retry-after"]}`,
      ),
    );
    expect(await Promise.all(outcomes)).toEqual(REPETITIONS.map(() => "unavailable 1"));
    expect(performance.now() - began).toBeLessThan(MILLISECONDS_MAX);
    vi.restoreAllMocks();
    expect(lines.join("")).toContain(reason);
  }

  it("and closes the connection at once", async () => {
    await expectUnavailable(await serve((socket) => socket.end()));
  });

  it("and resets the connection", async () => {
    await expectUnavailable(await serve((socket) => socket.once("data", () => socket.resetAndDestroy())));
  });

  it("and says nothing", async () => {
    await expectUnavailable(await serve((socket) => socket.resume()));
  });

  it("and says nothing to the request for TLS", async () => {
    await expectUnavailable(`${await serve((socket) => socket.resume())}?sslmode=require`);
  });

  it("and refuses TLS, or sends more than its answer", async () => {
    const answer = (bytes: string) => serve((socket) => socket.once("data", () => socket.write(bytes)));
    await expectUnavailable(
      `${await answer("N")}?sslmode=require`,
      "does not offer TLS, and sslmode=require demands it",
    );
    await (await import("./database.ts")).closeDatabase();
    vi.resetModules();
    await expectUnavailable(
      `${await answer("SE")}?sslmode=require`,
      "did not answer the request for TLS as Postgres does",
    );
  });

  it("and closes the connection after each message of a login", async () => {
    const message = (type: string, ...parts: Buffer[]) => {
      const body = Buffer.concat(parts);
      const head = Buffer.alloc(5);
      head.write(type);
      head.writeInt32BE(body.length + 4, 1);
      return Buffer.concat([head, body]);
    };
    const int = (value: number) => {
      const bytes = Buffer.alloc(4);
      bytes.writeInt32BE(value);
      return bytes;
    };
    const messages = [
      message("R", int(3)),
      message("R", int(0)),
      message("S", Buffer.from("server_version\x0018.0\0")),
      message("K", int(1), int(2)),
    ];
    for (let sent = 0; sent <= messages.length; sent++) {
      const url = await serve((socket) => {
        let next = 0;
        socket.on("data", () => {
          // A password is answered by all that remains of the messages.
          const upTo = next === 0 ? Math.min(sent, 1) : sent;
          socket.write(Buffer.concat(messages.slice(next, upTo)));
          next = upTo;
          if (next === sent) socket.end();
        });
      });
      await expectUnavailable(url);
      await (await import("./database.ts")).closeDatabase();
      vi.resetModules();
    }
  });

  it("receives no password before it asks for one", async () => {
    let received = "";
    const url = await serve((socket) => socket.on("data", (data) => (received += data.toString("latin1"))));
    await expectUnavailable(url);
    expect(received).toContain("someone");
    expect(received).not.toContain("secret");
  });

  it("is unavailable when its name does not exist, or its port is closed", async () => {
    await expectUnavailable("postgres://someone@lotus.invalid/lotus?sslmode=disable");
    await (await import("./database.ts")).closeDatabase();
    vi.resetModules();
    await expectUnavailable("postgres://someone@127.0.0.1:1/lotus");
  });
});

describe("a login", () => {
  let postgres: TestPostgres;
  const urls: Record<string, string> = {};
  beforeAll(async () => {
    postgres = await startTestPostgres();
    for (const name of ["scram", "scram_tls", "md5", "clear", "trusted"])
      urls[name] = await postgres.createDatabase(name);
  });
  afterAll(() => postgres.stop());

  const one = async (url: string, limits?: object) =>
    (await load(url, limits)).query<{ user: string; tls: boolean }>(
      "one",
      "select current_user as user, ssl as tls from pg_stat_ssl where pid = pg_backend_pid()",
      [],
      "once",
    );

  it.each(["scram", "md5", "clear", "trusted"])("with %s succeeds", async (name) => {
    expect(await one(urls[name] ?? "")).toEqual([{ user: name, tls: false }]);
  });

  const byName = () => urls.scram_tls?.replace("127.0.0.1", "localhost");

  it.each(["verify-full", "verify-ca", "require"])("over TLS with sslmode=%s succeeds", async (mode) => {
    expect(await one(`${byName()}?sslmode=${mode}&sslrootcert=${AUTHORITY}`)).toEqual([
      { user: "scram_tls", tls: true },
    ]);
  });

  it("with sslmode=require accepts any certificate, and with verify-ca any name of the authority", async () => {
    expect(await one(`${urls.scram_tls}?sslmode=require`)).toMatchObject([{ tls: true }]);
    await (await import("./database.ts")).closeDatabase();
    vi.resetModules();
    expect(await one(`${urls.scram_tls}?sslmode=verify-ca&sslrootcert=${AUTHORITY}`)).toMatchObject([{ tls: true }]);
  });

  it("with the authority of DATABASE_CA_FILE succeeds", async () => {
    vi.stubEnv("DATABASE_CA_FILE", AUTHORITY);
    expect(await one(`${byName()}?sslmode=verify-full`)).toMatchObject([{ tls: true }]);
  });

  it.each([
    ["another authority", () => `${byName()}?sslmode=verify-full&sslrootcert=${OTHER_AUTHORITY}`, "is refused"],
    ["an unknown authority", () => `${byName()}?sslmode=verify-full`, "Name its authority"],
    [
      "another host name",
      () => `${urls.scram_tls}?sslmode=verify-full&sslrootcert=${AUTHORITY}`,
      "does not name the host 127.0.0.1",
    ],
    ["a server that demands TLS", () => `${urls.scram_tls}?sslmode=disable`, "pg_hba.conf rejects"],
    ["a wrong password", () => urls.scram?.replace(":owner@", ":wrong@"), "password authentication failed"],
    ["a wrong database", () => urls.scram?.replace(/scram$/, "nowhere"), 'nowhere\\" does not exist'],
  ])("with %s is answered as unavailable, and logged with its reason", async (_, url, reason) => {
    const lines = readLog();
    await expect(one(url() ?? "", SHORT)).rejects.toMatchObject({
      code: "unavailable",
      headers: { "retry-after": "1" },
    });
    vi.restoreAllMocks();
    expect(lines.join("\n")).toContain(reason);
  });

  it("reads a rotated password from its file, and sends the statement", async () => {
    const file = join(tmpdir(), `lotus-password-${process.pid}`);
    await writeFile(file, "owner\n");
    vi.stubEnv("DATABASE_PASSWORD_FILE", file);
    expect(await one(urls.scram ?? "")).toMatchObject([{ user: "scram" }]);
    await postgres.superuser.query("alter role scram password 'rotated'");
    await postgres.superuser.query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'scram'");
    const late = one(urls.scram ?? "");
    await writeFile(file, "rotated\n");
    expect(await late).toMatchObject([{ user: "scram" }]);
    await postgres.superuser.query("alter role scram password 'owner'");
  });

  it("is repeated while the server starts: no statement fails", async () => {
    const { query } = await load(urls.scram ?? "");
    await postgres.superuser.query("alter database scram allow_connections false");
    const statements = REPETITIONS.map((repetition) => query(repetition, "select 1 as one", [], repetition));
    setTimeout(() => void postgres.superuser.query("alter database scram allow_connections true"), 1_200);
    expect(await Promise.all(statements)).toEqual(REPETITIONS.map(() => [{ one: 1 }]));
  });
});

describe("a connection that carries no more bytes, and does not close", () => {
  let postgres: TestPostgres;
  let network: Network;
  let url: string;
  beforeAll(async () => {
    postgres = await startTestPostgres();
    url = await postgres.createDatabase("frozen");
    network = await startNetwork(postgres.port);
    url = url.replace(String(postgres.port), String(network.port));
  });
  afterAll(async () => {
    await network.stop();
    await postgres.stop();
  });

  /** No test waits for a real limit. */
  const FROZEN = { DATABASE_IDLE_TRUSTED_MILLISECONDS: 0, DATABASE_CHECK_MILLISECONDS_MAX: 200 };
  const IN_FLIGHT = { DATABASE_IDLE_TRUSTED_MILLISECONDS: 60_000, STATEMENT_MILLISECONDS_MAX: -500 };

  /** Opens four connections: each statement waits for a lock until all wait. */
  async function openFour(query: (name: string, text: string, values: unknown[]) => Promise<unknown>): Promise<void> {
    const lock = await postgres.connect("frozen");
    await lock.query("select pg_advisory_lock(1)");
    const waiting = Promise.all([1, 2, 3, 4].map(() => query("wait", "select pg_advisory_xact_lock_shared(1)", [])));
    const inLine =
      "select count(*)::int as n from pg_locks where locktype = 'advisory' and not granted and pid <> pg_backend_pid()";
    while ((await lock.query(inLine)).rows[0].n < 4);
    await lock.query("select pg_advisory_unlock(1)");
    await waiting;
    await lock.end();
  }

  it.each(REPETITIONS)("while it is idle: a statement that is %s is answered over a new connection", async (kind) => {
    const { query } = await load(url, FROZEN);
    await openFour(query);
    network.freeze();
    const began = performance.now();
    const answers = [1, 2, 3, 4].map((n) => query("one", "select $1::int as n", [n], kind));
    expect(await Promise.all(answers)).toEqual([1, 2, 3, 4].map((n) => [{ n }]));
    expect(performance.now() - began).toBeLessThan(MILLISECONDS_MAX);
  });

  it("while it is idle: one connection is tested, and the others of that time are replaced", async () => {
    const { query } = await load(url, FROZEN);
    const sent = vi.spyOn(Client.prototype, "query");
    await openFour(query);
    const frozen = new Set(sent.mock.contexts);
    network.freeze();
    sent.mockClear();
    await query("one", "select 1", []);
    await Promise.all([1, 2, 3, 4].map(() => query("one", "select 1", [])));
    const asked = sent.mock.contexts.filter((client) => frozen.has(client));
    vi.restoreAllMocks();
    expect([frozen.size, asked.length]).toEqual([4, 1]);
  });

  it("with a statement in flight: only a statement that may be repeated is sent again", async () => {
    const { query } = await load(url, IN_FLIGHT);
    const outcomes: unknown[] = [];
    for (const repetition of REPETITIONS) {
      await query("open", "select 1", []);
      network.freeze();
      const answer = query(repetition, "select 1 as one", [], repetition);
      outcomes.push(await answer.catch(({ code }) => code));
    }
    expect(outcomes).toEqual([[{ one: 1 }], [{ one: 1 }], "outcome-unknown"]);
  });
});

describe("a statement of several mebibytes", () => {
  it("is sent and answered; a statement above the limit fails at once, and the next one succeeds", async () => {
    const postgres = await startTestPostgres();
    const { query } = await load(await postgres.createDatabase("trusted"));
    const text = "x".repeat(12 * 1024 * 1024);
    const echo = async (value: string) => {
      const [row] = await query<{ text: string }>("echo", "select $1::text || $1 as text", [value], "once");
      return row?.text.length;
    };
    expect(await echo(text)).toBe(2 * text.length);
    await expect(echo(text + text)).rejects.toThrow("was not sent to the database");
    expect(await echo("x")).toBe(2);
    await (await import("./database.ts")).closeDatabase();
    await postgres.stop();
  });
});

describe("a statement", () => {
  it("ends with Sync alone, so that its rows and its commit arrive in one packet", async () => {
    const postgres = await startTestPostgres();
    const url = new URL(await postgres.createDatabase("trusted"));
    const port = Number(url.port);
    const sent: Buffer[] = [];
    const proxy = createServer((client) => {
      const server = connect(port, "127.0.0.1").on("error", () => client.destroy());
      client.on("error", () => server.destroy()).on("data", (data: Buffer) => sent.push(data));
      client.pipe(server).pipe(client);
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    url.port = String((proxy.address() as AddressInfo).port);
    const { query, closeDatabase } = await load(url.href);
    expect(await query("one", "select 1 as one", [])).toEqual([{ one: 1 }]);
    const last = sent.at(-1) ?? Buffer.alloc(0);
    expect(last.subarray(-5)).toEqual(Buffer.from("S\0\0\0\x04", "latin1"));
    expect(last.includes(Buffer.from("H\0\0\0\x04", "latin1"))).toBe(false);
    await closeDatabase();
    await new Promise((resolve) => proxy.close(resolve));
    await postgres.stop();
  });
});
