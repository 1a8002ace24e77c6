/** Calls of a page from another origin, in a real browser, with and without the option that allows it. */
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, afterEach, describe, expect, it } from "vitest";
import { openPage, skipWithoutChromium } from "../../scripts/testing/chromium.ts";
import { call, newUser, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

const endings: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});
const runs: TestLotus[] = [];
afterAll(() => Promise.all(runs.map((lotus) => lotus.stop())));

async function start(cors?: readonly string[]): Promise<TestLotus> {
  const lotus = await startTestLotus(cors === undefined ? {} : { cors });
  runs.push(lotus);
  return lotus;
}

/** A server for one page, which sends back what it has seen. */
async function pageServer() {
  let page = "";
  let resolve: (seen: unknown) => void;
  const seen = new Promise<unknown>((done) => {
    resolve = done;
  });
  const server = createServer(async (incoming, outgoing) => {
    if (incoming.method === "POST") {
      let text = "";
      for await (const chunk of incoming) text += chunk;
      resolve(JSON.parse(text));
      outgoing.end();
    } else outgoing.setHeader("content-type", "text/html").end(page);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  endings.push(async () => {
    server.close();
    server.closeAllConnections();
  });
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    origin,
    /** Runs a script in the page; resolves to what the script returns. */
    async run(script: string): Promise<unknown> {
      page = `<!doctype html><script type="module">
        const attempt = async (work) => { try { return await work(); } catch (error) { return error.name; } };
        const seen = await (async () => {${script}})();
        await fetch("/", { method: "POST", body: JSON.stringify(seen) });
      </script>`;
      endings.push(await openPage(origin));
      return seen;
    },
  };
}

const calls = (lotus: TestLotus, token: string) => `
  const url = ${JSON.stringify(lotus.url)}, authorization = ${JSON.stringify(`Bearer ${token}`)};
  const json = { "content-type": "application/json" };
  const call = (path, options) => attempt(async () => {
    const answer = await fetch(url + path, options);
    return [answer.status, (await answer.json()).code ?? "", answer.headers.get("link") !== null, answer.headers.get("retry-after")];
  });
  return {
    simple: await call("/order/subscriptions"),
    refusal: await call("/nowhere"),
    login: await call("/profile/login", { method: "POST", headers: json, body: JSON.stringify({ email: "x@example.com", password: "x" }) }),
    withToken: await call("/profile/me", { headers: { authorization } }),
    withoutToken: await call("/profile/me", { headers: { authorization: "Bearer x" } }),
    withKey: await call("/billing/add-money?money=1", { method: "POST", headers: { authorization, "idempotency-key": "page" } }),
    paged: await call("/billing/history?limit=1", { headers: { authorization } }),
    otherHeader: await call("/profile/me", { headers: { authorization, "x-other": "1" } }),
  };`;

describe.skipIf(skipWithoutChromium)("a page of another origin, in Chromium", () => {
  it("calls Lotus when its origin is allowed", async () => {
    const page = await pageServer();
    const lotus = await start(["https://shop.example", page.origin]);
    const { token } = await newUser(lotus, 5);
    expect(await page.run(calls(lotus, token))).toEqual({
      simple: [200, "", false, null],
      refusal: [404, "not-found", false, null],
      login: [401, "invalid-credentials", false, null],
      withToken: [200, "", false, null],
      withoutToken: [401, "unauthenticated", false, null],
      withKey: [200, "", false, null],
      paged: [200, "", true, null],
      otherHeader: "TypeError",
    });
  });

  it("reads no answer when its origin is not allowed, or no origin is", async () => {
    for (const cors of [["https://shop.example"], undefined]) {
      const page = await pageServer();
      const lotus = await start(cors);
      const { token } = await newUser(lotus);
      const seen = (await page.run(calls(lotus, token))) as Record<string, unknown>;
      expect(new Set(Object.values(seen))).toEqual(new Set(["TypeError"]));
    }
  });
});

describe("the headers for other origins", () => {
  const preflight = { origin: "https://shop.example", "access-control-request-method": "POST" };
  const corsHeaders = (headers: Headers) =>
    Object.fromEntries([...headers].filter(([name]) => name.startsWith("access-control-") || name === "vary"));

  it("answer a preflight and a call of an allowed origin, and tell caches that the answer depends on the origin", async () => {
    const lotus = await start(["https://shop.example"]);
    const answer = await call(lotus, "OPTIONS /order/pay", { headers: preflight });
    expect([answer.status, answer.headers.get("allow")]).toEqual([204, "POST, OPTIONS"]);
    expect(corsHeaders(answer.headers)).toEqual({
      "access-control-allow-origin": "https://shop.example",
      "access-control-allow-methods": "GET, HEAD, POST",
      "access-control-allow-headers": "Authorization, Content-Type, Idempotency-Key, Prefer, Traceparent",
      "access-control-expose-headers": "Allow, Link, Location, Retry-After, Traceresponse, WWW-Authenticate",
      "access-control-max-age": "600",
      vary: "Origin",
    });
    const other = { headers: { origin: "https://shop.example.evil.example" } };
    expect(corsHeaders((await call(lotus, "GET /order/subscriptions", other)).headers)).toEqual({ vary: "Origin" });
    expect(corsHeaders((await call(lotus, "GET /order/subscriptions")).headers)).toEqual({ vary: "Origin" });
  });

  it("are absent without the option", async () => {
    const lotus = await start();
    for (const request of ["OPTIONS /order/pay", "GET /order/subscriptions", "GET /nowhere"])
      expect(corsHeaders((await call(lotus, request, { headers: preflight })).headers)).toEqual({});
  });
});
