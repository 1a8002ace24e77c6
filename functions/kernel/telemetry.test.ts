import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";
import { receiverOf, spanNamed, spansOnce, tracesWith, treeOf } from "../../scripts/testing/spans.ts";

const PAY = "POST /order/pay";
const CREATE = "create notification-requested";
const SEND = "send notification-requested";
const PROCESS = "process notification-requested";
const PAYMENT = [PAY, CREATE, "order.place", SEND, PROCESS, "notification.store"];

/** Pays once, and resolves to the spans of the payment once it has these. */
async function pay(lotus: TestLotus, user: TestUser, names = PAYMENT, headers: Record<string, string> = {}) {
  const before = new Set(tracesWith(lotus, PAY));
  const { status } = await user.call("POST /order/pay?idSubscription=1", { headers });
  expect(status).toBe(200);
  return spansOnce(
    lotus,
    `the payment has the spans ${names.join(", ")}`,
    () => tracesWith(lotus, PAY).find((id) => !before.has(id)),
    (spans) => names.every((name) => spans.some((span) => span.name === name)),
  );
}

describe("the trace of a payment", () => {
  let lotus: TestLotus;
  let user: TestUser;
  beforeAll(async () => {
    lotus = await startTestLotus({ otel: true, scheduled: false });
    user = await newUser(lotus, 1_000);
    await settled(lotus);
  });
  afterAll(() => lotus.stop());

  it("runs from the cold start to the stored notification", async () => {
    const spans = await pay(lotus, user, [...PAYMENT, "cold start"]);
    const cold = spanNamed(spans, "cold start");
    const request = spanNamed(spans, PAY);
    expect(request.attributes).toMatchObject({
      "http.request.method": "POST",
      "http.route": "/order/pay",
      "http.response.status_code": 200,
      "url.path": "/order/pay",
      "faas.trigger": "http",
      "faas.coldstart": true,
    });
    expect(cold.parentSpanId).toBe(request.spanId);
    expect(cold.start).toBeLessThan(request.start);
    expect(cold.end).toBeGreaterThan(cold.start + 1_000);
    expect(cold.end).toBeLessThanOrEqual(request.start + 1_000);
    expect(cold.events.map(({ name }) => name)).toEqual(["Node is ready", "the server listens"]);
    expect(treeOf(spans.filter(({ name }) => name !== "cold start"))).toEqual([
      `${PAY} (server, order-pay)`,
      `  ${CREATE} (producer, order-pay)`,
      `    ${SEND} (client, order-pay)`,
      `    ${PROCESS} (consumer, notification-store)`,
      "      notification.store (client, notification-store)",
      "  order.place (client, order-pay)",
    ]);
  });

  it("names the statement, the event, the topic and the outcome by the semantic conventions", async () => {
    const spans = await pay(lotus, user);
    const create = spanNamed(spans, CREATE);
    expect(spanNamed(spans, PAY).attributes["faas.coldstart"]).toBe(false);
    expect(spanNamed(spans, "order.place").attributes).toMatchObject({
      "db.system.name": "postgresql",
      "db.query.summary": "order.place",
      "db.stored_procedure.name": '"order".place',
      "lotus.batch.calls": 1,
    });
    const id = create.attributes["messaging.message.id"];
    expect(id).toMatch(/^[0-9a-f-]{36}$/);
    expect(spanNamed(spans, SEND)).toMatchObject({
      attributes: { "messaging.batch.message_count": 1, "messaging.destination.name": "notification-requested" },
      links: [{ traceId: create.traceId, spanId: create.spanId }],
    });
    expect(spanNamed(spans, PROCESS).attributes).toMatchObject({
      "messaging.system": "kafka",
      "messaging.message.id": id,
      "messaging.consumer.group.name": "notification-store",
      "faas.trigger": "pubsub",
      "lotus.outcome": "handled",
    });
    expect(spans.filter(({ failed }) => failed)).toEqual([]);
  });

  it("begins at the public endpoint, and links to the trace of the client", async () => {
    const [traceId, spanId] = [randomBytes(16).toString("hex"), randomBytes(8).toString("hex")];
    const spans = await pay(lotus, user, PAYMENT, { traceparent: `00-${traceId}-${spanId}-01` });
    const request = spanNamed(spans, PAY);
    expect(request.traceId).not.toBe(traceId);
    expect(request.links).toEqual([{ traceId, spanId }]);
    expect(receiverOf(lotus).trace(traceId)).toEqual([]);
  });
});
