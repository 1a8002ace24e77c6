import { neonConfig } from "@neondatabase/serverless";
import { afterEach, beforeEach, describe, expect, inject, it, vi } from "vitest";
import { startWebSocketPostgres, type WebSocketPostgres } from "../../scripts/testing/websocket-server.ts";

const postgres = new URL(inject("templateUrl"));
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
  vi.doUnmock("./settings.ts");
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
    const { NeonSocket } = await import("./neon-socket.ts");
    const asked: string[] = [];
    vi.doMock("./neon-socket.ts", () => ({
      NeonSocket: class extends NeonSocket {
        constructor(url: string) {
          asked.push(url);
          super(`ws://127.0.0.1:${server.port}/v2`);
        }
      },
    }));
    vi.stubEnv("DATABASE_URL", `${urlAt("ep-quiet-1.aws.neon.tech", 5432)}?sslmode=require&channel_binding=require`);
    const { query } = await import("./database.ts");
    expect(await query("one", "select 1 as one", [], "once")).toEqual([{ one: 1 }]);
    expect(asked).toEqual(["wss://ep-quiet-1.aws.neon.tech/v2"]);
    expect(neonConfig.pipelineConnect).toBe("password");
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
    vi.doMock("./settings.ts", async (original) => ({
      ...(await original<object>()),
      DATABASE_RETRY_MILLISECONDS_MAX: 100,
    }));
    const wrong = Object.assign(new URL(urlAt("ep-quiet-1.aws.neon.tech", 5432)), { password: "wrong" }).href;
    vi.stubEnv("DATABASE_URL", wrong);
    const { query } = await import("./database.ts");
    await expect(query("one", "select 1 as one", [], "once")).rejects.toMatchObject({ code: "unavailable" });
  });
});
