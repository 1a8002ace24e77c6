import { once } from "node:events";
import { Agent, type IncomingHttpHeaders, request } from "node:http";
import { connect } from "node:net";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findFunctions } from "../../scripts/project/functions.ts";
import { call, newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";
import { REQUEST_BODY_BYTES_MAX, REQUEST_HEADER_BYTES_MAX } from "./settings.ts";

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

/** Sends a target as it is, which `fetch` would tidy up; a body in several parts goes in chunks, without a length. */
async function send(method: string, target: string, headers = {}, parts: readonly string[] = []): Promise<Raw> {
  const { hostname, port } = new URL(lotus.url);
  // Kept alive, so that nobody closes it before all has been sent; of its own, because an answer may come before that.
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

/** Status and code of a refusal, after a look at what every refusal has. */
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

  it("longer than the limit, or with headers longer than that, is refused without a word of HTML", async () => {
    const long = "x".repeat(REQUEST_HEADER_BYTES_MAX);
    for (const answer of [await send("GET", `/order/list?${long}`), await send("GET", "/order/list", { long })]) {
      expect(refusal(answer)).toEqual([431, "headers-too-large"]);
    }
  });

  it("in what is no HTTP is refused as well", async () => {
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
    const allow = fn.description.method === "GET" ? "GET, HEAD" : "POST";
    for (const method of ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]) {
      if (allow.includes(method)) continue;
      const answer = await send(method, fn.path);
      expect([method, answer.status, answer.headers.allow]).toEqual([method, 405, allow]);
      if (method !== "HEAD") expect(refusal(answer)).toEqual([405, "method-not-allowed"]);
    }
  });

  it("HEAD gives the headers of GET, and nothing else", async () => {
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
  ])("must be a JSON object: %j is none", async (body) => {
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
    "gives only what it names itself: %s has no price",
    async (body) => {
      const answer = await create(json, body);
      expect(refusal(answer)).toEqual([400, "invalid-request"]);
      expect(JSON.parse(answer.text).errors).toEqual([{ field: "price", detail: "is missing" }]);
    },
  );

  it.each([{}, { "content-type": "text/plain" }, { "content-type": "application/x-www-form-urlencoded" }])(
    "must be said to be JSON: %j is refused",
    async (headers) => {
      expect(refusal(await create(headers as Record<string, string>, '{"price":10}'))).toEqual([
        415,
        "unsupported-media-type",
      ]);
    },
  );

  it("must come as it is, not compressed", async () => {
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

  it("may have as many bytes as the limit, and not one more, whether it says how many or not", async () => {
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

describe("a query", () => {
  it("names every parameter that is given twice", async () => {
    const { status, body } = await user.call(
      "POST /order/pay?idSubscription=1&a=1&a=2&idSubscription=1&__proto__=1&__proto__=2",
    );
    expect([status, body.code]).toEqual([400, "invalid-request"]);
    expect(body.errors.map(({ field }: { field: string }) => field)).toEqual(["a", "idSubscription", "__proto__"]);
  });

  it("gives only what it names itself", async () => {
    const { status, body } = await user.call("POST /order/pay?__proto__=1&constructor=1&ID_SUBSCRIPTION=1");
    expect([status, body.errors]).toEqual([400, [{ field: "idSubscription", detail: "is missing" }]]);
  });
});
