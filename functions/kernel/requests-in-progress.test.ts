/** A client cannot block a function for others, by incomplete or by complete requests. */
import { once } from "node:events";
import { type AddressInfo, connect, type Socket } from "node:net";
import * as v from "valibot";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { call, eventually, holdAccount, newUser, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";
import { endpoint, ok } from "./endpoint.ts";
import { REQUESTS_OF_USER_MAX } from "./limits.ts";
import { RequestsInProgress } from "./requests-in-progress.ts";
import { createFunctionServer } from "./server.ts";

/** The deadline of the function server in this process; the functions of `lotus` keep theirs. */
const DEADLINE_MILLISECONDS = 200;
vi.mock("./limits.ts", async (importOriginal) => ({
  ...(await importOriginal<typeof import("./limits.ts")>()),
  REQUEST_MILLISECONDS_MAX: 200,
}));
const ANSWER_MILLISECONDS_MAX = 1_000;

let lotus: TestLotus;
const endings: (() => unknown)[] = [];
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});
afterAll(() => lotus.stop());

/** Opens connections to the gateway, each with a request whose body lacks a byte. */
async function incomplete(paths: readonly string[]): Promise<void> {
  const { port } = new URL(lotus.url);
  const sockets = await Promise.all(
    paths.map(async (path) => {
      const socket: Socket = connect(Number(port), "127.0.0.1");
      socket.on("error", () => undefined).resume();
      await once(socket, "connect");
      const head = `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{`;
      await new Promise((resolve) => socket.write(head, resolve));
      return socket;
    }),
  );
  endings.push(() => sockets.map((socket) => socket.destroy()));
}

/** Asserts that other callers receive their normal answers in time. */
async function expectAnswers(): Promise<void> {
  const calls = [
    ["POST /order/pay", 401],
    ["POST /profile/register", 400],
    ["GET /order/subscriptions", 200],
  ] as const;
  for (const [request, status] of calls) {
    const began = performance.now();
    const answer = await call(lotus, request, request === "POST /profile/register" ? { body: {} } : {});
    expect([request, answer.status]).toEqual([request, status]);
    expect(performance.now() - began).toBeLessThan(ANSWER_MILLISECONDS_MAX);
  }
}

describe("incomplete requests", () => {
  it.each([1000, 2010])("of %i connections leave other callers their answers", async (count) => {
    for (const path of ["GET /order/pay", "GET /profile/register", "GET /order/subscriptions"]) await call(lotus, path);
    await incomplete(Array.from({ length: count }, (_, n) => (n % 2 === 0 ? "/order/pay" : "/profile/register")));
    await expectAnswers();
  });
});

describe("waiting requests", () => {
  it("of one user are limited, end before their deadline, and leave other users their payments", async () => {
    const [greedy, other] = [await newUser(lotus, 100_000), await newUser(lotus, 1000)];
    const account = await holdAccount(lotus, greedy);
    let held = true;
    const release = async () => {
      if (held) await account.release();
      held = false;
    };
    endings.push(release);
    const statuses: number[] = [];
    let longest = 0;
    const all = Promise.all(
      Array.from({ length: 1050 }, async () => {
        const began = performance.now();
        const { status, headers, body } = await greedy.call("POST /order/pay?idSubscription=1");
        longest = Math.max(longest, performance.now() - began);
        if (status === 429) expect([body.code, headers.get("retry-after")]).toEqual(["too-many-requests", "1"]);
        statuses.push(status);
      }),
    );
    await eventually("the share is used up", () => statuses.includes(429));
    for (let n = 0; n < 5; n++) expect((await other.call("POST /order/pay?idSubscription=1")).status).toBe(200);
    // The account stays locked until the last payment is answered.
    await all;
    const { REQUEST_MILLISECONDS_MAX: deadline } = await vi.importActual<typeof import("./limits.ts")>("./limits.ts");
    expect(longest).toBeLessThan(deadline);
    await release();
    expect(statuses.filter((status) => ![429, 503].includes(status))).toEqual([]);
    expect(statuses.filter((status) => status === 503).length).toBeGreaterThanOrEqual(REQUESTS_OF_USER_MAX);
    await eventually("the share is free", async () => (await greedy.call("GET /billing/balance")).status === 200);
  });
});

describe("the requests in progress of a process", () => {
  it("refuse a client above its limit, and every client above the total limit", () => {
    const inProgress = new RequestsInProgress(3);
    const begin = (client: string) => {
      const outcome = inProgress.begin(client, 2);
      return typeof outcome === "function" ? outcome : outcome.code;
    };
    const first = begin("a");
    expect(begin("a")).toBeTypeOf("function");
    expect(begin("a")).toBe("too-many-requests");
    expect(begin("b")).toBeTypeOf("function");
    expect(begin("b")).toBe("unavailable");
    if (typeof first === "function") first();
    expect(begin("b")).toBeTypeOf("function");
    expect(begin("a")).toBe("unavailable");
  });
});

describe.skipIf(process.platform !== "linux")("a busy function", () => {
  it("lets more new connections wait than Node does by default", async () => {
    await call(lotus, "GET /order/subscriptions");
    const fn = lotus.functions.get("order-subscriptions");
    const { port = 0 } = fn?.running ?? {};
    // A halted process accepts no connection, so each of these waits in the kernel.
    fn?.freeze();
    endings.push(() => fn?.thaw());
    const sockets = Array.from({ length: 1_500 }, () => connect(port, "127.0.0.1"));
    endings.push(() => sockets.map((socket) => socket.destroy()));
    await Promise.all(sockets.map((socket) => once(socket, "connect")));
  });
});

describe("a request that takes longer than its deadline", () => {
  it("is answered 503, and counts until its work has ended, even when its client has left", async () => {
    const releases: (() => void)[] = [];
    const description = endpoint({
      method: "GET",
      caller: "anyone",
      summary: "Waits for its release.",
      answers: { 200: v.object({}) },
      async handle() {
        await new Promise<void>((resolve) => releases.push(resolve));
        return ok({});
      },
    });
    const { server } = createFunctionServer("slow-work", description);
    server.listen(0, "127.0.0.1");
    endings.push(() => server.close());
    endings.push(() => server.closeAllConnections());
    await once(server, "listening");
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const began = performance.now();
    const { status, body } = await call({ url }, "GET /slow/work");
    expect([status, body.code]).toEqual([503, "outcome-unknown"]);
    expect(performance.now() - began).toBeGreaterThanOrEqual(DEADLINE_MILLISECONDS - 5);
    expect(performance.now() - began).toBeLessThan(DEADLINE_MILLISECONDS + ANSWER_MILLISECONDS_MAX);
    for (let n = 0; n < 499; n++) {
      const leaving = new AbortController();
      const sent = fetch(`${url}/slow/work`, { signal: leaving.signal }).catch(() => undefined);
      await eventually("it is in progress", () => releases.length === n + 2);
      leaving.abort();
      await sent;
    }
    const refused = await call({ url }, "GET /slow/work");
    expect([refused.status, refused.body.code]).toEqual([429, "too-many-requests"]);
    for (const release of releases.splice(0)) release();
    const again = call({ url }, "GET /slow/work");
    await eventually("it is in progress", () => releases.length === 1);
    releases[0]?.();
    expect((await again).status).toBe(200);
  });
});
