import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { runScenario } from "../../scripts/scenario/run.ts";
import {
  call,
  eventually,
  newUser,
  roleOf,
  settled,
  startTestLotus,
  type TestLotus,
} from "../../scripts/testing/lotus.ts";
import { log } from "./log.ts";
import { beginSpan, readTraceparent } from "./telemetry.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

/** Nine endpoints and two triggers. */
const FUNCTIONS_OF_SCENARIO = 11;

interface Line {
  time: string;
  level: string;
  function: string;
  message: string;
  trace_id?: string;
  client_trace_id?: string;
}
const written = (name: string): Line[] => (lotus.lines.get(name) ?? []).map((line) => JSON.parse(line) as Line);

describe("the log", () => {
  it("follows one trace from the request through the event to the trigger", async () => {
    const user = await newUser(lotus, 100);
    const traceId = randomBytes(16).toString("hex");
    const { status } = await user.call("POST /order/pay?idSubscription=1", {
      headers: { traceparent: `00-${traceId}-${"b".repeat(16)}-01` },
    });
    expect(status).toBe(200);
    const request = await eventually("the endpoint has written its line", () =>
      written("order-pay").find((line) => line.client_trace_id === traceId),
    );
    const trigger = await eventually("the trigger has written its line", () =>
      written("notification-store").find((line) => line.trace_id === request.trace_id),
    );
    expect(request.trace_id).not.toBe(traceId);
    expect(request).toMatchObject({
      level: "info",
      message: "answered",
      caller: user.id,
      method: "POST",
      path: "/order/pay",
      status: 200,
    });
    expect(trigger).toMatchObject({
      level: "info",
      message: "handled",
      topic: "notification-requested",
      caller: user.id,
    });
    await settled(lotus);
  });

  it("names the trace of a server error in the answer and in the log line", async () => {
    await lotus.database.query(`revoke execute on function "order".place from ${roleOf(lotus, "order")}`);
    const user = await newUser(lotus, 100);
    const { status, body } = await user.call("POST /order/pay?idSubscription=1");
    await lotus.database.query(`grant execute on function "order".place to ${roleOf(lotus, "order")}`);
    expect([status, body.code]).toEqual([500, "internal"]);
    const traceId = /trace ([0-9a-f]{32})/.exec(body.detail)?.[1];
    const line = await eventually("it has written its line", () =>
      written("order-pay").find((line) => line.trace_id === traceId),
    );
    expect(line).toMatchObject({
      level: "error",
      status: 500,
      reason: "permission denied for function place",
      stack: expect.any(String),
    });
    expect(JSON.stringify(body)).not.toMatch(/permission|stack|\.ts/);
  });

  it("is one JSON object a line, and contains no secret and no email", async () => {
    const summary = await runScenario({ baseUrl: lotus.url, quiet: true });
    expect(summary.failed).toBe(0);
    const user = await newUser(lotus, 12);
    const wrong = { email: user.email, password: "hunter2-hunter2" };
    await call(lotus, "POST /profile/login", { body: wrong });
    await call(lotus, "POST /profile/register", { body: { email: user.email, password: user.password } });
    await call(lotus, "POST /profile/register", { body: { email: "not an address", password: user.password } });
    await call(lotus, "POST /profile/register", { body: `{"email": "${user.email}", "password": "half` });
    await call(lotus, "GET /billing/balance", { token: `${user.token}x` });
    await user.call("POST /order/create", { body: { price: "much too much" } });
    await user.call("GET /notification?cursor=nonsense");
    await settled(lotus);
    // The lines of the last deliveries may arrive after their effects.
    const names = await eventually("the functions of the scenario have written", () => {
      const written = [...lotus.lines.keys()];
      return written.length >= FUNCTIONS_OF_SCENARIO && written;
    });
    for (const name of names) {
      for (const line of written(name)) {
        expect(line).toMatchObject({
          time: expect.stringMatching(/^\d{4}-.*Z$/),
          function: name,
          message: expect.any(String),
        });
        expect(["info", "warning", "error"]).toContain(line.level);
      }
    }
    const { rows } = await lotus.database.query("select email, password_hash from profile.users");
    const all = [...lotus.lines.values()].flat().join("\n");
    const secrets = [
      user.token,
      user.token.split(".")[2],
      user.password,
      wrong.password,
      "much too much",
      "not an address",
    ];
    for (const secret of [...secrets, ...rows.flatMap(({ email, password_hash }) => [email, password_hash])]) {
      expect(all).not.toContain(secret);
    }
    for (const environment of lotus.manifests.functions.values()) {
      const password = new URL(environment.DATABASE_URL ?? "postgres://h").password;
      if (password !== "") expect(all).not.toContain(password);
    }
    expect(all).not.toMatch(/example\.(com|org)/);
  });
});

describe("a traceparent", () => {
  it.each([
    ["none", undefined],
    ["nonsense", "hello"],
    ["of zeros", `00-${"0".repeat(32)}-${"b".repeat(16)}-01`],
    ["with capitals", `00-${"A".repeat(32)}-${"b".repeat(16)}-01`],
  ])("that is %s begins a new trace", (_, given) => {
    const trace = beginSpan("span", "server", readTraceparent(given));
    expect(trace.traceId).toMatch(/^(?!0+$|a+$)[0-9a-f]{32}$/);
    expect(trace.spanId).toMatch(/^[0-9a-f]{16}$/);
  });
});

it("gives every span new ids", () => {
  const spans = Array.from({ length: 1_000 }, () => beginSpan("span", "server", undefined));
  expect(new Set(spans.map(({ traceId }) => traceId)).size).toBe(1_000);
  expect(new Set(spans.map(({ spanId }) => spanId)).size).toBe(1_000);
});

it("writes the lines of one turn together, and a warning at once after the lines before it", async () => {
  const writes: string[] = [];
  const written = vi.spyOn(process.stdout, "write").mockImplementation((text) => writes.push(String(text)) > 0);
  log("info", "one");
  log("info", "two");
  const before = writes.length;
  await new Promise((resolve) => setImmediate(resolve));
  log("info", "three");
  log("warning", "four");
  const after = writes.splice(0);
  written.mockRestore();
  const messages = (text: string) =>
    text
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).message);
  expect([before, ...after.map(messages)]).toEqual([0, ["one", "two"], ["three", "four"]]);
});
