import { once } from "node:events";
import { Agent, type IncomingHttpHeaders, request } from "node:http";
import { connect } from "node:net";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../../scripts/project/functions.ts";
import {
  call,
  eventually,
  newUser,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";
import { REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX } from "./limits.ts";

const endpoints = (await findFunctions()).filter((fn) => fn.kind === "endpoint");

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
});
afterAll(() => lotus.stop());

interface Raw {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

/** Sends a target unchanged, which `fetch` would normalise. A body in several parts goes in chunks, without a length. */
async function send(method: string, target: string, headers = {}, parts: readonly string[] = []): Promise<Raw> {
  const { hostname, port } = new URL(lotus.url);
  // Kept alive, so that no side closes the connection early. A separate agent, because an answer may come before the end of the body.
  const agent = new Agent({ keepAlive: true });
  const sent = request({ hostname, port, method, path: target, headers, agent });
  for (const part of parts) sent.write(part);
  sent.end();
  const [answer] = await once(sent, "response");
  let text = "";
  for await (const chunk of answer.setEncoding("utf8")) text += chunk;
  sent.destroy();
  agent.destroy();
  return { status: answer.statusCode, headers: answer.headers, text };
}

/** Checks the members that every refusal has. Returns status and code. */
function refusal({ status, headers, text }: Raw): [status: number, code: string] {
  expect(headers["content-type"]).toBe("application/problem+json");
  expect(headers["cache-control"]).toBe("no-store");
  expect(text).not.toMatch(/<html|<pre|node_modules|\.ts:|\.cjs|call stack/i);
  const problem = JSON.parse(text);
  expect(problem).toMatchObject({ type: `urn:lotus:problem:${problem.code}`, status, title: expect.any(String) });
  return [status, problem.code];
}

describe("an address", () => {
  it.each([
    "/",
    "/order",
    "/order/nothing",
    "/order/payX",
    "/order/pay/",
    "/order/pay/1",
    "/order/pay/../list",
    "/order/pay;x=1",
    "/order/pay%00",
    "/order/pay%2f",
    "/order/pay/%",
    "/order/pay/%E0%A4%A",
    "/order/pay/%ff%fe",
    "/order/%70ay",
    "//order/pay",
    "/ORDER/PAY",
    "*",
    "/<script>",
    "/profile/me/favicon.ico",
    `/order/pay/${"x".repeat(8_000)}`,
  ])("is not found when it is %j", async (target) => {
    expect(refusal(await send("POST", target, { authorization: `Bearer ${user.token}` }))).toEqual([404, "not-found"]);
  });

  it("is refused without HTML when it, or its headers, exceed the limit", async () => {
    const long = "x".repeat(REQUEST_HEADER_BYTES_MAX);
    for (const answer of [await send("GET", `/order/list?${long}`), await send("GET", "/order/list", { long })]) {
      expect(refusal(answer)).toEqual([431, "headers-too-large"]);
    }
  });

  it("is refused when it is malformed HTTP", async () => {
    const { hostname, port } = new URL(lotus.url);
    const socket = connect(Number(port), hostname);
    socket.write("GET /order/subscriptions HTCPCP/1.0\r\n\r\n");
    let text = "";
    for await (const chunk of socket.setEncoding("utf8")) text += chunk;
    expect(text).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n.*content-type: application\/problem\+json\r\n/s);
    expect(JSON.parse(text.split("\r\n\r\n")[1] ?? "")).toMatchObject({ status: 400, code: "malformed-request" });
  });

  it("is served also in the form that names the host", async () => {
    const answer = await send("GET", "http://example.com/order/subscriptions?");
    expect([answer.status, JSON.parse(answer.text)[0].name]).toEqual([200, "daily"]);
  });
});

describe("a method", () => {
  it.each(endpoints)("other than that of $name is refused, and the answer names the right one", async (fn) => {
    const allow = fn.description.method === "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
    for (const method of ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]) {
      if (allow.includes(method)) continue;
      const answer = await send(method, fn.path);
      expect([method, answer.status, answer.headers.allow]).toEqual([method, 405, allow]);
      if (method !== "HEAD") expect(refusal(answer)).toEqual([405, "method-not-allowed"]);
    }
  });

  it.each(endpoints)("OPTIONS names the methods of $name, without a token", async (fn) => {
    const { status, headers, text } = await send("OPTIONS", fn.path);
    expect([status, headers.allow, text]).toEqual([
      204,
      fn.description.method === "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS",
      "",
    ]);
  });

  it("HEAD returns the headers of GET without a body", async () => {
    const [get, head] = [await send("GET", "/order/subscriptions"), await send("HEAD", "/order/subscriptions")];
    expect([head.status, head.text]).toEqual([200, ""]);
    expect(head.headers["content-length"]).toBe(String(Buffer.byteLength(get.text)));
    expect(head.headers["content-type"]).toBe("application/json");
  });
});

describe("a body", () => {
  const json = { "content-type": "application/json" };
  const create = (headers: Record<string, string>, ...parts: string[]) =>
    send("POST", "/order/create", { authorization: `Bearer ${user.token}`, ...headers }, parts);

  it.each([
    "",
    " ",
    "null",
    "10",
    '"10"',
    "true",
    '[{"price":10}]',
    '{"price":10',
    '{"price":10}}',
    '{"price":10,}',
    "{'price':10}",
    '{"price":10} // ten',
    '{"price":NaN}',
    '{"price":+5}',
    '{"price":.5}',
    '{"price":0x10}',
    '{"price":10,"price":11}',
    '{"price":"\\x10"}',
    '{"price":"\\ud8"}',
    '{"price":"1\n0"}',
  ])("must be a JSON object, and not %j", async (body) => {
    expect(refusal(await create(json, body))).toEqual([400, "malformed-body"]);
  });

  it("must be UTF-8", async () => {
    const bytes = Buffer.from('{"price":"\xff\xfe"}', "latin1");
    const answer = await call(lotus, "POST /order/create", { body: bytes, token: user.token });
    expect([answer.status, answer.body.code]).toEqual([400, "malformed-body"]);
  });

  it.each(["[", '{"price":', '{"price":{"price":[', '{"a":1,"a":['])(
    "must not be nested too deeply: %s",
    async (open) => {
      const body = open.repeat(Math.floor(REQUEST_BODY_BYTES_MAX / open.length));
      const answer = await create(json, body);
      expect(refusal(answer)).toEqual([400, "malformed-body"]);
      expect(JSON.parse(answer.text).detail).toContain("nested too deeply");
    },
  );

  it.each(['{"__proto__":{"price":10}}', '{"constructor":{"prototype":{"price":10}}}', '{"toString":10,"prices":10}'])(
    "is read by its own members only: %s has no price",
    async (body) => {
      const answer = await create(json, body);
      expect(refusal(answer)).toEqual([400, "invalid-request"]);
      expect(JSON.parse(answer.text).errors).toEqual([{ field: "price", detail: "is missing" }]);
    },
  );

  it.each([{}, { "content-type": "text/plain" }, { "content-type": "application/x-www-form-urlencoded" }])(
    "needs the content type JSON: %j is refused",
    async (headers) => {
      expect(refusal(await create(headers as Record<string, string>, '{"price":10}'))).toEqual([
        415,
        "unsupported-media-type",
      ]);
    },
  );

  it("must not be compressed", async () => {
    const answer = await call(lotus, "POST /order/create", {
      body: gzipSync('{"price":10}'),
      headers: { "content-encoding": "gzip" },
      token: user.token,
    });
    expect([answer.status, answer.body.code]).toEqual([415, "unsupported-media-type"]);
  });

  it("may name its encoding, in any case", async () => {
    const headers = { "content-type": "Application/JSON; charset=utf-8" };
    expect(refusal(await create(headers, '{"price":10}'))).toEqual([400, "insufficient-funds"]);
  });

  it("may have as many bytes as the limit, and not one more, with or without Content-Length", async () => {
    const padded = (length: number) => `{"price":0${" ".repeat(length - 11)}}`;
    const [full, over] = [padded(REQUEST_BODY_BYTES_MAX), padded(REQUEST_BODY_BYTES_MAX + 1)];
    const counted = (body: string) => ({ ...json, "content-length": String(Buffer.byteLength(body)) });
    expect(refusal(await create(counted(full), full))).toEqual([400, "invalid-request"]);
    expect(refusal(await create(json, full.slice(0, 9), full.slice(9)))).toEqual([400, "invalid-request"]);
    expect(refusal(await create(counted(over), over))).toEqual([413, "body-too-large"]);
    expect(refusal(await create(json, over.slice(0, 9), over.slice(9)))).toEqual([413, "body-too-large"]);
  });

  it("far over the limit is refused as well, while it is still being sent", async () => {
    const part = " ".repeat(64 * 1024);
    expect(refusal(await create(json, ...Array.from({ length: 64 }, () => part)))).toEqual([413, "body-too-large"]);
    const length = String(64 * part.length);
    expect(
      refusal(await create({ ...json, "content-length": length }, ...Array.from({ length: 64 }, () => part))),
    ).toEqual([413, "body-too-large"]);
  });
});

/** Sends bytes to the gateway; returns what came back until the connection was closed, or until `end` matches it. */
function exchange(text: string, end?: RegExp): Promise<string> {
  const { port } = new URL(lotus.url);
  return new Promise((resolve) => {
    const socket = connect(Number(port), "127.0.0.1");
    let answer = "";
    socket.on("error", () => undefined).on("close", () => resolve(answer));
    socket.setEncoding("latin1").on("data", (data) => {
      answer += data;
      if (end?.test(answer)) socket.destroy();
    });
    socket.write(text);
  });
}
const CLOSE = "Host: x\r\nConnection: close\r\n";

describe("a header", () => {
  it.each([
    ["Authorization", (token: string) => `Authorization: Bearer ${token}\r\nAuthorization: Bearer ${token}\r\n`],
    ["Authorization", (token: string) => `Authorization: Bearer ${token}\r\nAuthorization: Basic YTpi\r\n`],
    ["Host", (token: string) => `Host: y\r\nAuthorization: Bearer ${token}\r\n`],
  ])("%s may occur once: %s", async (name, lines) => {
    const answer = await exchange(`GET /profile/me HTTP/1.1\r\n${CLOSE}${lines(user.token)}\r\n`);
    expect(answer).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n/);
    expect(answer.split("\r\n\r\n")[1]).toContain(`{"field":"${name.toLowerCase()}","detail":"must be given once"}`);
  });

  it("line of HTTP/2.0 is refused", async () => {
    const answer = await exchange(`GET /order/subscriptions HTTP/2.0\r\n${CLOSE}\r\n`);
    expect(answer).toMatch(/^HTTP\/1\.1 400 Bad Request\r\n/);
  });
});

describe("a broken request behind a complete one", () => {
  it("does not change its answer: the payment receives 200, and the connection closes", async () => {
    const payer = await newUser(lotus, 100);
    const head = `POST /order/pay?idSubscription=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${payer.token}\r\n`;
    for (const broken of ["GARBAGE\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "\0\0\0\0"]) {
      const before = (await payer.call("GET /billing/balance")).body.balance;
      const answer = await exchange(`${head}Content-Length: 0\r\n\r\n${broken}`);
      expect(answer.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200"]);
      expect((await payer.call("GET /billing/balance")).body.balance).toBe(before - 10);
    }
  });

  it("does not change the answers to two of them", async () => {
    const one = "GET /order/subscriptions HTTP/1.1\r\nHost: x\r\n\r\n";
    expect((await exchange(`${one}${one}GARBAGE\r\n\r\n`)).match(/HTTP\/1\.1 \d+/g)).toEqual([
      "HTTP/1.1 200",
      "HTTP/1.1 200",
    ]);
  });

  it("is refused itself when the answers before it are complete", async () => {
    const one = "GET /order/subscriptions HTTP/1.1\r\nHost: x\r\n\r\n";
    const { port } = new URL(lotus.url);
    const socket = connect(Number(port), "127.0.0.1");
    let answer = "";
    socket.setEncoding("latin1").on("data", (data) => (answer += data));
    socket.write(one);
    await eventually("it is answered", () => /\]$/.test(answer));
    socket.write("GARBAGE\r\n\r\n");
    await once(socket, "close");
    expect(answer.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200", "HTTP/1.1 400"]);
  });
});

describe("a HEAD", () => {
  it("that is broken is refused without a body", async () => {
    const broken = [
      `HEAD /order/subscriptions HTTP/1.1\r\nHost: x\r\nlong: ${"x".repeat(REQUEST_HEADER_BYTES_MAX)}\r\n\r\n`,
      "HEAD /order/subscriptions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ];
    for (const text of broken) {
      const answer = await exchange(text);
      expect(answer).toMatch(/^HTTP\/1\.1 4(00|31) .*\r\n/);
      expect(answer.split("\r\n\r\n")[1]).toBe("");
    }
  });

  it("and a GET with as many headers as the gateway accepts reach the function", async () => {
    for (const method of ["HEAD", "GET"]) {
      const line = `${method} /order/subscriptions HTTP/1.1\r\n${CLOSE}`;
      let headers = "";
      for (let n = 0; line.length + headers.length < REQUEST_HEADER_BYTES_MAX - 100; n++)
        headers += `x${n.toString(36)}:\r\n`;
      expect(await exchange(`${line}${headers}\r\n`)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
    }
  });
});

describe("a refusal", () => {
  /** A problem document with its headers, for any request. */
  const FLOOR_BYTES = 1024;
  const token = () => `Authorization: Bearer ${user.token}\r\n`;
  const many = (part: string) => part.repeat(Math.floor(15_000 / part.length));
  const json = (body: string) => `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  it.each([
    ["many repeated parameters", () => `GET /order/subscriptions?${many("a=&")} HTTP/1.1\r\n${CLOSE}\r\n`],
    [
      "many different repeated parameters",
      () =>
        `GET /order/subscriptions?${Array.from({ length: 1500 }, (_, n) => `${n}=&${n}=&`).join("")} HTTP/1.1\r\n${CLOSE}\r\n`,
    ],
    [
      "a long repeated parameter that grows in JSON",
      () => `GET /order/subscriptions?${"%00".repeat(2000)}=&${"%00".repeat(2000)}= HTTP/1.1\r\n${CLOSE}\r\n`,
    ],
    ["a long path", () => `GET /${many('"')} HTTP/1.1\r\n${CLOSE}\r\n`],
    ["a long path behind a function's", () => `GET /order/pay/${many('"')} HTTP/1.1\r\n${CLOSE}\r\n`],
    [
      "a long coding",
      () => `POST /order/create HTTP/1.1\r\n${CLOSE}${token()}Content-Encoding: ${many('"')}\r\n${json("{}")}`,
    ],
    [
      "a long key",
      () => `POST /order/pay?idSubscription=1 HTTP/1.1\r\n${CLOSE}${token()}Idempotency-Key: ${many("k")}\r\n\r\n`,
    ],
    ["a long token", () => `GET /profile/me HTTP/1.1\r\n${CLOSE}Authorization: Bearer ${many("t")}\r\n\r\n`],
    ["a long cursor", () => `GET /order/list?cursor=${many("c")} HTTP/1.1\r\n${CLOSE}${token()}\r\n`],
    ["many fields of a body", () => `POST /profile/register HTTP/1.1\r\n${CLOSE}${json(`{${many('"a":1,')}"b":1}`)}`],
    ["a long broken body", () => `POST /order/create HTTP/1.1\r\n${CLOSE}${token()}${json(`{"price":${many("x")}`)}`],
    ["an empty request", () => `GET / HTTP/1.1\r\n${CLOSE}\r\n`],
    ["garbage", () => "GARBAGE\r\n\r\n"],
  ])("of %s is at most twice as long as the request, or 1 KiB", async (_, request) => {
    const text = request();
    const answer = await exchange(text);
    expect(answer).toMatch(/^HTTP\/1\.1 4\d\d /);
    expect(answer.length).toBeLessThanOrEqual(Math.max(2 * text.length, FLOOR_BYTES));
  });

  it("names a parameter once, however often it is repeated", async () => {
    const { text } = await send("GET", `/order/subscriptions?${"a=&".repeat(4000)}`);
    expect(JSON.parse(text).errors).toEqual([{ field: "a", detail: "must be given once" }]);
  });
});

describe("an answer", () => {
  it("is not for caches, whether it succeeds or refuses", async () => {
    for (const target of ["/order/subscriptions", "/profile/me", "/nothing"]) {
      const { headers } = await send("GET", target, { authorization: `Bearer ${user.token}` });
      expect([target, headers["cache-control"]]).toEqual([target, "no-store"]);
    }
  });
});

describe("a query", () => {
  it("names every parameter that is given twice", async () => {
    const { status, body } = await user.call(
      "POST /order/pay?idSubscription=1&a=1&a=2&idSubscription=1&__proto__=1&__proto__=2",
    );
    expect([status, body.code]).toEqual([400, "invalid-request"]);
    expect(body.errors.map(({ field }: { field: string }) => field)).toEqual(["a", "idSubscription", "__proto__"]);
  });

  it("is read by its own parameters only", async () => {
    const { status, body } = await user.call("POST /order/pay?__proto__=1&constructor=1&ID_SUBSCRIPTION=1");
    expect([status, body.errors]).toEqual([400, [{ field: "idSubscription", detail: "is missing" }]]);
  });
});
