import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { neonConfig } from "@neondatabase/serverless";
import { afterEach, beforeEach, describe, expect, inject, it, vi } from "vitest";
import { type WebSocket as ServerSocket, WebSocketServer } from "ws";
import { startWebSocketPostgres, type WebSocketPostgres } from "../../scripts/testing/websocket-server.ts";

const postgres = new URL(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
let server: WebSocketPostgres;

beforeEach(async () => {
  vi.resetModules();
  server = await startWebSocketPostgres(Number(postgres.port));
});
afterEach(async () => {
  await (await import("./database.ts")).closeDatabase();
  await server.stop();
  vi.unstubAllEnvs();
  vi.doUnmock("./neon-socket.ts");
  vi.doUnmock("./limits.ts");
});

/** The same database, reached at another host and port. */
const urlAt = (host: string, port: number) =>
  postgres.href.replace(`${postgres.hostname}:${postgres.port}`, `${host}:${port}`);

describe("a database that is reached over a WebSocket", () => {
  it("answers statements", async () => {
    vi.stubEnv("DATABASE_TRANSPORT", "websocket");
    vi.stubEnv("DATABASE_URL", urlAt("127.0.0.1", server.port));
    const { query } = await import("./database.ts");
    const rows = await Promise.all(
      Array.from({ length: 20 }, (_, n) => query("add", "select $1::int + 1 as n", [n], "once")),
    );
    expect(rows).toEqual(Array.from({ length: 20 }, (_, n) => [{ n: n + 1 }]));
    expect(new Set(server.paths)).toEqual(new Set(["/v2"]));
  });

  it("is Neon for a host of neon.tech: TLS, its path, and the password before the server asks", async () => {
    // Neon accepts the password in clear at once. The Postgres of the tests asks for SCRAM, so this server only listens.
    const silent = new WebSocketServer({ host: "127.0.0.1", port: 0 });
    await once(silent, "listening");
    let received = "";
    silent.on("connection", (socket) =>
      socket.on("message", (data: Buffer) => {
        received += data.toString("latin1");
        if (received.includes(postgres.password)) socket.terminate();
      }),
    );
    const { NeonSocket } = await import("./neon-socket.ts");
    const asked: string[] = [];
    vi.doMock("./neon-socket.ts", () => ({
      NeonSocket: class extends NeonSocket {
        constructor(url: string) {
          asked.push(url);
          super(`ws://127.0.0.1:${(silent.address() as AddressInfo).port}/v2`);
        }
      },
    }));
    vi.doMock("./limits.ts", async (original) => ({
      ...(await original<object>()),
      DATABASE_RETRY_MILLISECONDS_MAX: 100,
    }));
    vi.stubEnv("DATABASE_URL", `${urlAt("ep-quiet-1.aws.neon.tech", 5432)}?sslmode=require&channel_binding=require`);
    const { query } = await import("./database.ts");
    await expect(query("one", "select 1 as one", [], "once")).rejects.toMatchObject({ code: "unavailable" });
    expect(new Set(asked)).toEqual(new Set(["wss://ep-quiet-1.aws.neon.tech/v2"]));
    expect(received).toContain(`user\0${postgres.username}\0`);
    expect(received).toContain(postgres.password);
    expect(neonConfig.pipelineConnect).toBe("password");
    silent.close();
  });

  it("refuses the login to Neon: a statement without a key is answered as unavailable", async () => {
    const { NeonSocket } = await import("./neon-socket.ts");
    vi.doMock("./neon-socket.ts", () => ({
      NeonSocket: class extends NeonSocket {
        constructor() {
          super(`ws://127.0.0.1:${server.port}/v2`);
        }
      },
    }));
    vi.doMock("./limits.ts", async (original) => ({
      ...(await original<object>()),
      DATABASE_RETRY_MILLISECONDS_MAX: 100,
    }));
    const wrong = Object.assign(new URL(urlAt("ep-quiet-1.aws.neon.tech", 5432)), { password: "wrong" }).href;
    vi.stubEnv("DATABASE_URL", wrong);
    const { query } = await import("./database.ts");
    await expect(query("one", "select 1 as one", [], "once")).rejects.toMatchObject({ code: "unavailable" });
  });

  it("closes the pool while a login fails", async () => {
    const breaking = new WebSocketServer({ host: "127.0.0.1", port: 0 });
    await once(breaking, "listening");
    const login = new Promise<ServerSocket>((resolve) =>
      breaking.on("connection", (socket) =>
        socket.on("message", (data: Buffer) => data.includes(postgres.password) && resolve(socket)),
      ),
    );
    const { NeonSocket } = await import("./neon-socket.ts");
    vi.doMock("./neon-socket.ts", () => ({
      NeonSocket: class extends NeonSocket {
        constructor() {
          super(`ws://127.0.0.1:${(breaking.address() as AddressInfo).port}/v2`);
        }
      },
    }));
    vi.doMock("./limits.ts", async (original) => ({
      ...(await original<object>()),
      DATABASE_RETRY_MILLISECONDS_MAX: 0,
      STATEMENT_MILLISECONDS_MAX: 0,
    }));
    vi.stubEnv("DATABASE_URL", urlAt("ep-quiet-1.aws.neon.tech", 5432));
    const { query, closeDatabase } = await import("./database.ts");
    const answer = expect(query("one", "select 1 as one", [], "once")).rejects.toMatchObject({ code: "unavailable" });
    const socket = await login;
    const closed = closeDatabase();
    socket.terminate();
    await closed;
    await answer;
    breaking.close();
  });
});

describe("a WebSocket to Neon", () => {
  it("compresses no message, and ends at once when it is written to while it closes", async () => {
    const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: true });
    await once(server, "listening");
    // Such a server does not answer the closing handshake, for which ws waits 30 s.
    server.on("connection", (socket) => socket.pause());
    const { NeonSocket } = await import("./neon-socket.ts");
    const socket = new NeonSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`);
    await once(socket, "open");
    expect(socket.extensions).toBe("");
    const began = performance.now();
    socket.close();
    socket.send(new Uint8Array(1));
    await once(socket, "close");
    expect(performance.now() - began).toBeLessThan(15_000);
    for (const client of server.clients) client.terminate();
    server.close();
  });
});
