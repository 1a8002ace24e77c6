/** Malformed requests on raw sockets, through the real gateway, to an upstream that reads raw bytes. */
import { once } from "node:events";
import { Agent } from "node:http";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { FunctionProcess } from "./function-process.ts";
import { createGateway } from "./gateway.ts";

/** The content of a connection to the function: complete requests, and bytes outside of any frame. */
interface Forwarded {
  readonly method: string;
  readonly headers: ReadonlyMap<string, string>;
  readonly body: string;
}
const forwarded: Forwarded[] = [];
const unframed: string[] = [];

/** Reads one request from the front of `text`. Returns undefined for an incomplete request. @throws for a malformed one */
function readRequest(text: string): { request: Forwarded; length: number } | undefined {
  const end = text.indexOf("\r\n\r\n");
  if (end < 0) return undefined;
  const [line = "", ...fields] = text.slice(0, end).split("\r\n");
  if (!/^[A-Z]+ \/fn\S* HTTP\/1\.1$/.test(line)) throw new Error(`not a request line: ${line}`);
  const headers = new Map<string, string>();
  for (const field of fields) {
    const colon = field.indexOf(":");
    const name = field.slice(0, colon).toLowerCase();
    if (headers.has(name) || !/^[!#$%&'*+.^_`|~0-9a-z-]+$/.test(name))
      throw new Error(`not a header, or sent twice: ${field}`);
    headers.set(name, field.slice(colon + 1).trim());
  }
  if (headers.has("transfer-encoding")) throw new Error("the gateway knows each length, and copied a coding");
  const length = headers.get("content-length") ?? "0";
  if (!/^\d+$/.test(length)) throw new Error(`not a length: ${length}`);
  const from = end + 4;
  if (text.length < from + Number(length)) return undefined;
  const body = text.slice(from, from + Number(length));
  return { request: { method: line.split(" ")[0] ?? "", headers, body }, length: from + body.length };
}

/** A function that answers each request with its `x-id`. */
function rawUpstream(): Server {
  return createServer((socket) => {
    let text = "";
    socket.setEncoding("latin1").on("error", () => undefined);
    socket.on("data", (data) => {
      text += data;
      try {
        for (let read = readRequest(text); read !== undefined; read = readRequest(text)) {
          text = text.slice(read.length);
          forwarded.push(read.request);
          const id = read.request.headers.get("x-id") ?? "none";
          const body = read.request.method === "HEAD" ? "" : id;
          socket.write(`HTTP/1.1 200 OK\r\nx-id: ${id}\r\ncontent-length: ${id.length}\r\n\r\n${body}`);
        }
      } catch (error) {
        unframed.push(`${(error as Error).message}, before ${JSON.stringify(text.slice(0, 200))}`);
        socket.destroy();
      }
    });
    socket.on("close", () => text !== "" && unframed.push(text.slice(0, 200)));
  });
}

let upstream: Server;
let gateway: Server;
let port: number;
// One connection for all: bytes that one client leaves on it reach the next one.
const agent = new Agent({ keepAlive: true, maxSockets: 1 });

beforeAll(async () => {
  upstream = rawUpstream().listen(0, "127.0.0.1");
  await once(upstream, "listening");
  const running = { port: (upstream.address() as AddressInfo).port, agent };
  const fn = { acquire: async () => running, release() {}, discard() {} } as unknown as FunctionProcess;
  const created = createGateway([{ path: "/fn", name: "fn" }], new Map([["fn", fn]]));
  // Node drops what follows a refused upgrade in its packet; such a connection is closed when it is idle.
  const patience = { requestTimeout: 300, headersTimeout: 300, connectionsCheckingInterval: 50, keepAliveTimeout: 300 };
  Object.assign(created, patience);
  gateway = created.listen(0, "127.0.0.1");
  await once(gateway, "listening");
  port = (gateway.address() as AddressInfo).port;
});
afterAll(() => {
  agent.destroy();
  gateway.close();
  upstream.close();
});

/** Sends bytes, and returns what came back until the gateway closed the connection. */
async function exchange(...parts: readonly string[]): Promise<string> {
  const socket: Socket = connect(port, "127.0.0.1");
  let text = "";
  socket.setEncoding("latin1").on("data", (data) => (text += data));
  socket.on("error", () => undefined);
  for (const part of parts) socket.write(Buffer.from(part, "latin1"));
  await once(socket, "close");
  return text;
}

const FORGED = "6.6.6.6";
/** The request that an attacker hides behind another one on the connection. */
const smuggled = (id: string) =>
  `GET /fn/smuggled HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: ${FORGED}\r\nx-id: ${id}\r\n\r\n`;
const chunked = (body: string) => `${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;
const junk = "a:\r\n".repeat(1000);

/** Header lines and the bytes after the head, by their fault. `body` is the request to smuggle. */
const SHAPES: Readonly<Record<string, (body: string) => readonly [headers: string, rest: string]>> = {
  "no body, pipelined": (body) => ["", body],
  "a length": (body) => [`Content-Length: ${body.length}\r\n`, body],
  "a length as header 1001": (body) => [`${junk}Content-Length: ${body.length}\r\n`, body],
  "chunks as header 1001": (body) => [`${junk}Transfer-Encoding: chunked\r\n`, chunked(body)],
  "a length 0 and a body": (body) => ["Content-Length: 0\r\n", body],
  "two equal lengths": (body) => [`Content-Length: ${body.length}\r\nContent-Length: ${body.length}\r\n`, body],
  "two lengths": (body) => [`Content-Length: 0\r\nContent-Length: ${body.length}\r\n`, body],
  "a list of lengths": (body) => [`Content-Length: ${body.length}, ${body.length}\r\n`, body],
  "a length with a sign": (body) => [`Content-Length: +${body.length}\r\n`, body],
  "a negative length": (body) => ["Content-Length: -1\r\n", body],
  "a hexadecimal length": (body) => [`Content-Length: 0x${body.length.toString(16)}\r\n`, body],
  "a huge length": (body) => ["Content-Length: 99999999999999999999\r\n", body],
  "an empty length": (body) => ["Content-Length: \r\n", body],
  "a length in words": (body) => ["Content-Length: ten\r\n", body],
  "a length and a space before the colon": (body) => [`Content-Length : ${body.length}\r\n`, body],
  "a length, folded": (body) => [`Content-Length:\r\n ${body.length}\r\n`, body],
  "a length behind a folded header": (body) => [`A: b\r\n c\r\nContent-Length: ${body.length}\r\n`, body],
  "a length with a vertical tab": (body) => [`Content-Length: \x0b${body.length}\r\n`, body],
  "a length behind a bare CR": (body) => [`A: b\rContent-Length: ${body.length}\r\n`, body],
  "a length behind a bare LF": (body) => [`A: b\nContent-Length: ${body.length}\r\n`, body],
  "a length behind NUL": (body) => [`A: b\0\r\nContent-Length: ${body.length}\r\n`, body],
  "a length shorter than the body": (body) => [`Content-Length: ${body.length - 60}\r\n`, body],
  "a length longer than the body": (body) => [`Content-Length: ${body.length + 5}\r\n`, body],
  "a length over the limit": (body) => ["Content-Length: 70000\r\n", body],
  "a length named by Connection": (body) => [`Connection: content-length\r\nContent-Length: ${body.length}\r\n`, body],
  chunks: (body) => ["Transfer-Encoding: chunked\r\n", chunked(body)],
  "chunks named by Connection": (body) => [
    "Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
    chunked(body),
  ],
  "both named by Connection": (body) => [
    `Connection: content-length, transfer-encoding\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n`,
    chunked(body),
  ],
  "a length, then chunks": (body) => ["Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", chunked(body)],
  "chunks, then a length": (body) => ["Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunked(body)],
  "chunks of length 0, then the body": (body) => ["Transfer-Encoding: chunked\r\n", `0\r\n\r\n${body}`],
  "chunks twice": (body) => ["Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked(body)],
  "chunks, then identity": (body) => ["Transfer-Encoding: chunked, identity\r\n", chunked(body)],
  "identity, then chunks": (body) => ["Transfer-Encoding: identity, chunked\r\n", chunked(body)],
  "gzip, then chunks": (body) => ["Transfer-Encoding: gzip, chunked\r\n", chunked(body)],
  "an unknown coding": (body) => ["Transfer-Encoding: xchunked\r\n", chunked(body)],
  "a quoted coding": (body) => ['Transfer-Encoding: "chunked"\r\n', chunked(body)],
  "an empty coding": (body) => ["Transfer-Encoding: \r\n", chunked(body)],
  "a coding and a space before the colon": (body) => ["Transfer-Encoding : chunked\r\n", chunked(body)],
  "a coding with a vertical tab": (body) => ["Transfer-Encoding: \x0bchunked\r\n", chunked(body)],
  "a coding with a comma": (body) => ["Transfer-Encoding: ,chunked\r\n", chunked(body)],
  "a folded coding": (body) => ["Transfer-Encoding:\r\n chunked\r\n", chunked(body)],
  "chunk extensions": (body) => [
    "Transfer-Encoding: chunked\r\n",
    `${body.length.toString(16)};a=b;c="d"\r\n${body}\r\n0;e\r\n\r\n`,
  ],
  "a chunk extension with a bare LF": (body) => [
    "Transfer-Encoding: chunked\r\n",
    `1;a\nx\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`,
  ],
  "chunks ended by LF": (body) => ["Transfer-Encoding: chunked\r\n", `${body.length.toString(16)}\n${body}\n0\n\n`],
  "a chunk size with a space": (body) => [
    "Transfer-Encoding: chunked\r\n",
    `${body.length.toString(16)} \r\n${body}\r\n0\r\n\r\n`,
  ],
  "a chunk size with a sign": (body) => ["Transfer-Encoding: chunked\r\n", `-1\r\n${body}\r\n0\r\n\r\n`],
  "a chunk size with 0x": (body) => [
    "Transfer-Encoding: chunked\r\n",
    `0x${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`,
  ],
  "a chunk size that overflows": (body) => ["Transfer-Encoding: chunked\r\n", `10000000000000001\r\n${body}`],
  "a chunk longer than its size": (body) => ["Transfer-Encoding: chunked\r\n", `1\r\n${body}\r\n0\r\n\r\n`],
  "a chunk without an end": (body) => ["Transfer-Encoding: chunked\r\n", `ffff\r\n${body}`],
  trailers: (body) => [
    "Transfer-Encoding: chunked\r\nTrailer: Content-Length, x-forwarded-for\r\n",
    `${body.length.toString(16)}\r\n${body}\r\n0\r\nContent-Length: 3\r\nX-Forwarded-For: ${FORGED}\r\n\r\n`,
  ],
  "chunks over the limit": (body) => ["Transfer-Encoding: chunked\r\n", chunked("x".repeat(70_000)) + body],
  "Expect: 100-continue": (body) => [`Expect: 100-continue\r\nContent-Length: ${body.length}\r\n`, body],
  "another Expect": (body) => [`Expect: 200-ok\r\nContent-Length: ${body.length}\r\n`, body],
  "an upgrade to WebSocket": (body) => ["Connection: upgrade\r\nUpgrade: websocket\r\n", body],
  "an upgrade to h2c": (body) => [
    "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    body,
  ],
  "two hosts": (body) => [`Host: y\r\nContent-Length: ${body.length}\r\n`, body],
  "a header without a colon": (body) => [`Nonsense\r\nContent-Length: ${body.length}\r\n`, body],
  "a header that begins with a space": (body) => [` A: b\r\nContent-Length: ${body.length}\r\n`, body],
  "a header named __proto__": (body) => [`__proto__: x\r\nContent-Length: ${body.length}\r\n`, body],
  "a chosen address": (body) => [
    `X-Forwarded-For: ${FORGED}\r\nForwarded: for=${FORGED}\r\nContent-Length: ${body.length}\r\n`,
    body,
  ],
  "the gateway's headers named by Connection": (body) => [
    `Connection: x-forwarded-for, host\r\nContent-Length: ${body.length}\r\n`,
    body,
  ],
  garbage: (body) => ["", `GARBAGE\r\n\r\n${body}`],
};
const METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

const REQUEST_LINES: Readonly<Record<string, string>> = {
  "HTTP/1.0": "GET /fn HTTP/1.0\r\n",
  "HTTP/1.0 kept alive": "GET /fn HTTP/1.0\r\nConnection: keep-alive\r\n",
  "HTTP/0.9": "GET /fn\r\n",
  "HTTP/2.0": "GET /fn HTTP/2.0\r\n",
  "the HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  CONNECT: "CONNECT /fn HTTP/1.1\r\n",
  "CONNECT with a host": "CONNECT x:80 HTTP/1.1\r\n",
  "a tab for a space": "GET\t/fn\tHTTP/1.1\r\n",
  "two spaces": "GET  /fn HTTP/1.1\r\n",
  "an absolute target": "GET http://evil.example/fn HTTP/1.1\r\n",
  "a target with a fragment": "GET /fn#/nowhere HTTP/1.1\r\n",
  "a target with a bare CR": "GET /fn\r/x HTTP/1.1\r\n",
  "a lower-case method": "get /fn HTTP/1.1\r\n",
  "an unknown method": "BREW /fn HTTP/1.1\r\n",
  "an empty line before it": "\r\n\r\nGET /fn HTTP/1.1\r\n",
  "lines ended by LF": "GET /fn HTTP/1.1\n",
  "a path without a function": "GET /nowhere HTTP/1.1\r\n",
};

/** Asserts that the gateway wrote each forwarded request itself, and that each byte on the connection has a frame. */
function expectFramed(): void {
  expect(unframed).toEqual([]);
  for (const { headers } of forwarded.splice(0)) {
    expect(headers.get("x-forwarded-for")).toBe("127.0.0.1");
    expect(headers.has("forwarded")).toBe(false);
    expect(headers.has("connection") && headers.get("connection")).not.toMatch(/content-length|transfer-encoding/);
  }
}

/** Sends a shape, a last request behind it that closes the connection, and at the same time requests of other clients. */
async function attack(
  id: string,
  head: string,
  [headers, rest]: readonly [headers: string, rest: string],
): Promise<void> {
  const last = `GET /fn HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-id: ${id}-last\r\n\r\n`;
  const attacking = exchange(`${head}Host: x\r\nx-id: ${id}\r\n${headers}\r\n`, rest, last);
  const victims = Array.from({ length: 3 }, async (_, n) => {
    const own = `victim-${n}-of-${id}`;
    const answer = await exchange(`GET /fn HTTP/1.1\r\nHost: x\r\nx-id: ${own}\r\nConnection: close\r\n\r\n`);
    expect(answer).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    expect(answer.split("\r\n\r\n")[1]).toBe(own);
  });
  const answers = await attacking;
  await Promise.all(victims);
  for (const [, whose] of answers.matchAll(/^x-id: (.*)\r$/gm)) expect(whose).toMatch(new RegExp(`^${id}(-|$)`));
}

describe("the gateway frames every byte on the shared connection, and each client receives its answer", () => {
  it.each(Object.keys(SHAPES))("for every method with %s", async (name) => {
    const shape = SHAPES[name];
    if (shape === undefined) throw new Error(name);
    await Promise.all(
      METHODS.map((method) => {
        const id = `id-${method}`;
        return attack(id, `${method} /fn HTTP/1.1\r\n`, shape(smuggled(`${id}-smuggled`)));
      }),
    );
    expectFramed();
  });

  it.each(Object.keys(REQUEST_LINES))("for %s, with and without a body", async (name) => {
    const line = REQUEST_LINES[name] ?? "";
    const body = smuggled("id-smuggled");
    await Promise.all([
      attack("id-none", line, ["", ""]),
      attack("id", line, [`Content-Length: ${body.length}\r\n`, body]),
      attack("id", line, ["Transfer-Encoding: chunked\r\n", chunked(body)]),
    ]);
    expectFramed();
  });

  it("for an incomplete body, and a body that arrives after its refusal", async () => {
    const body = smuggled("id-smuggled");
    for (const path of ["/fn", "/nowhere"]) {
      const socket = connect(port, "127.0.0.1");
      socket
        .on("error", () => undefined)
        .write(`POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n${body}`);
      await once(socket, "connect");
      socket.destroy();
      await attack("id", `POST ${path} HTTP/1.1\r\n`, [`Content-Length: ${body.length}\r\n`, body]);
    }
    expectFramed();
  });

  it("for a header behind a thousand others, which reaches the function", async () => {
    await exchange(`GET /fn HTTP/1.1\r\nHost: x\r\n${junk}x-late: seen\r\nConnection: close\r\n\r\n`);
    expect(forwarded.map(({ headers }) => headers.get("x-late"))).toEqual(["seen"]);
    expectFramed();
  });

  it("for six pipelined requests, which are answered in order", async () => {
    const request = (n: number) => {
      const end = n === 5 ? "Connection: close\r\n" : "";
      return `POST /fn HTTP/1.1\r\nHost: x\r\nx-id: ${n}\r\n${end}Content-Length: 3\r\n\r\nabc`;
    };
    const answers = await exchange([0, 1, 2, 3, 4, 5].map(request).join(""));
    expect([...answers.matchAll(/^x-id: (.*)\r$/gm)].map(([, id]) => id)).toEqual(["0", "1", "2", "3", "4", "5"]);
    expectFramed();
  });
});
