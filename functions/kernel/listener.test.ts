import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import type { Server } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { ROOT } from "../../scripts/project/paths.ts";
import { CONNECTIONS_MAX, REQUEST_HEADER_BYTES_MAX } from "./limits.ts";
import { createHttpServer } from "./listener.ts";

vi.mock("./limits.ts", async (importOriginal) => ({
  ...(await importOriginal<typeof import("./limits.ts")>()),
  ANSWER_SEND_MILLISECONDS_MAX: 100,
}));

const LIMIT = 3;

let server: Server;
const sockets: Socket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
  server.close();
});

async function start(): Promise<void> {
  server = createHttpServer(REQUEST_HEADER_BYTES_MAX, (_, response) => void response.end("answer"), LIMIT);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
}

async function open(text: string): Promise<Socket> {
  const socket = connect((server.address() as AddressInfo).port, "127.0.0.1");
  sockets.push(socket);
  await once(socket, "connect");
  socket.write(text);
  return socket;
}

const REQUEST = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const answerOf = async (socket: Socket) => String((await once(socket, "data"))[0]);

/** Waits until the server has accepted so many connections. */
async function accepted(count: number): Promise<void> {
  while ((await new Promise((resolve) => server.getConnections((_, open) => resolve(open)))) !== count)
    await new Promise(setImmediate);
}

describe("the connections of a server", () => {
  it("are limited: one more is closed, and a place is free again when one ends", async () => {
    await start();
    for (let n = 1; n <= LIMIT; n++) {
      await open("GET / HTTP/1.1\r\n");
      await accepted(n);
    }
    const refused = await open(REQUEST);
    let received = "";
    refused.on("data", (data) => {
      received += data;
    });
    refused.on("error", () => undefined);
    await once(refused, "close");
    expect(received).toBe("");
    sockets[0]?.destroy();
    await accepted(LIMIT - 1);
    expect(await answerOf(await open(REQUEST))).toMatch(/^HTTP\/1\.1 200 /);
  });

  it("are closed while they are idle, when others need the place", async () => {
    await start();
    const idle: Socket[] = [];
    for (let n = 1; n < LIMIT; n++) {
      const socket = await open(REQUEST);
      await answerOf(socket);
      idle.push(socket);
    }
    const closed = idle.map((socket) => once(socket, "close"));
    const last = await open("GET / HTTP/1.1\r\n");
    await Promise.all(closed);
    expect(await answerOf(await open(REQUEST))).toMatch(/^HTTP\/1\.1 200 /);
    last.write("Host: x\r\n\r\n");
    expect(await answerOf(last)).toMatch(/^HTTP\/1\.1 200 /);
  });

  it("close when a client does not read its answers, and stay open when it reads them", async () => {
    server = createHttpServer(REQUEST_HEADER_BYTES_MAX, (_, response) => void response.end("x".repeat(10_000)));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const reading = await open("");
    let received = 0;
    reading.on("data", (data) => {
      received += data.length;
    });
    const socket = await open("");
    socket.on("error", () => undefined).pause();
    await accepted(2);
    // More answers than the buffers of both systems contain.
    const write = () => {
      while (!socket.destroyed && socket.write(REQUEST.repeat(100)));
      socket.once("drain", write);
    };
    write();
    await accepted(1);
    reading.write(REQUEST);
    await once(reading, "data");
    while (received < 10_000) await once(reading, "data");
    expect(reading.destroyed).toBe(false);
  });

  it("have a limit by default", async () => {
    server = createHttpServer(REQUEST_HEADER_BYTES_MAX, () => undefined);
    expect(server.maxConnections).toBe(CONNECTIONS_MAX);
  });
});

/** Tests, and programs that a bench compares Lotus with. */
const NOT_SHIPPED = /\.test\.ts$|^scripts\/(?:testing|bench\/programs)\//;

describe("the code that ships", () => {
  it("makes every HTTP server with these limits", async () => {
    const files: string[] = [];
    for (const folder of ["functions", "triggers", "scripts"])
      for (const file of await readdir(join(ROOT, folder), { recursive: true }))
        if (/\.[cm]?[jt]s$/.test(file)) files.push(`${folder}/${file}`);
    const bare: string[] = [];
    for (const file of files) {
      if (NOT_SHIPPED.test(file)) continue;
      const text = await readFile(join(ROOT, file), "utf8");
      const imported = /import[^;]*\bcreate(?:Secure)?Server\b[^;]*from "(?:node:)?https?2?";/.test(text);
      if (imported || /require\("(?:node:)?https?2?"\)\.create/.test(text) || /\bhttps?\.createServer\b/.test(text))
        bare.push(file);
    }
    expect(bare).toEqual(["functions/kernel/listener.ts"]);
  });
});
