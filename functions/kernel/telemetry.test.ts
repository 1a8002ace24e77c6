import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { ReceivedSpan } from "../../scripts/local/otlp-receiver.ts";
import {
  eventually,
  holdAccount,
  newUser,
  relayNow,
  settled,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";
import { receiverOf, spanNamed, spansOnce, tracesWith, treeOf } from "../../scripts/testing/spans.ts";
import type { Metric } from "./telemetry.ts";
import { METRICS } from "./telemetry-sdk.ts";

const PAY = "POST /order/pay";
const CREATE = "create notification-requested";
const SEND = "send notification-requested";
const PROCESS = "process notification-requested";
const WAITING_CALLS = 4;
const HOUR_SECONDS = 3_600;
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

/** Returns the id of the event that a payment created. */
function eventOf(spans: readonly ReceivedSpan[]): string {
  return String(spanNamed(spans, CREATE).attributes["messaging.message.id"]);
}

const isRepublished = ({ attributes }: ReceivedSpan) => attributes["lotus.republished"] === true;
const childrenOf = (spans: readonly ReceivedSpan[], parent: ReceivedSpan) =>
  spans.filter(({ parentSpanId }) => parentSpanId === parent.spanId).map(({ name }) => name);

describe("the trace of an event that takes another way", () => {
  let lotus: TestLotus;
  let user: TestUser;
  beforeAll(async () => {
    lotus = await startTestLotus({ otel: true, scheduled: false });
    user = await newUser(lotus, 1_000);
    await settled(lotus);
  });
  afterAll(() => lotus.stop());

  /** Leaves an event of a payment's trace in the outbox, as if its publication had failed. Resolves to the payment's `create` span. */
  async function leaveUnpublished(): Promise<ReceivedSpan> {
    const create = spanNamed(await pay(lotus, user), CREATE);
    await lotus.database.query(
      `select events.emit('notification-requested', 1, 'order-pay', $1::uuid, $2, jsonb_build_object(
        'userId', $1::uuid, 'recipient', 'a@example.com', 'kind', 'message', 'message', 'late'))`,
      [user.id, `00-${create.traceId}-${create.spanId}-01`],
    );
    return create;
  }
  const once = (id: string, what: string, isComplete: (spans: readonly ReceivedSpan[]) => boolean) =>
    spansOnce(lotus, what, () => id, isComplete);

  it("contains each delivery of an event that is delivered twice", async () => {
    const spans = await pay(lotus, user);
    const create = spanNamed(spans, CREATE);
    const traceparent = `00-${create.traceId}-${create.spanId}-01`;
    const http = { traceId: randomBytes(16).toString("hex"), spanId: randomBytes(8).toString("hex") };
    const { rows } = await lotus.database.query(
      "select jsonb_build_object('userId', user_id, 'recipient', email, 'kind', 'message', 'message', message) as data from notification.notifications where id = $1",
      [eventOf(spans)],
    );
    const { rows: installation } = await lotus.database.query("select events.source_of('order-pay') as source");
    const answer = await fetch(`${lotus.insideUrl}/notification-store`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": eventOf(spans),
        "ce-source": installation[0].source,
        "ce-type": "lotus.notification-requested.v1",
        "ce-traceparent": traceparent,
        "ce-knativekafkapartition": "3",
        "ce-knativekafkaoffset": "42",
        traceparent: `00-${http.traceId}-${http.spanId}-01`,
      },
      body: JSON.stringify(rows[0].data),
    });
    expect(answer.status).toBeLessThan(300);
    const both = await once(
      create.traceId,
      "both deliveries are in the trace",
      (all) => all.filter(({ name }) => name === "notification.store").length === 2,
    );
    const deliveries = both.filter(({ name }) => name === PROCESS);
    expect(deliveries.map(({ parentSpanId }) => parentSpanId)).toEqual([create.spanId, create.spanId]);
    expect(deliveries[1]).toMatchObject({
      links: [http],
      attributes: { "messaging.destination.partition.id": "3", "messaging.kafka.offset": "42" },
    });
    for (const delivery of deliveries) expect(childrenOf(both, delivery)).toEqual(["notification.store"]);
  });

  it("continues from the relay's publication", async () => {
    const create = await leaveUnpublished();
    await relayNow(lotus);
    const spans = await once(
      create.traceId,
      "the relay's publication and its delivery are in the trace",
      (all) => all.filter(({ name }) => name === "notification.store").length === 2 && all.some(isRepublished),
    );
    const republished = spans.find(isRepublished);
    expect(republished).toMatchObject({ name: SEND, service: "events-relay", parentSpanId: create.spanId });
    const relay = await once(republished?.links[1]?.traceId ?? "", "the relay's run has ended", (all) =>
      all.some(({ name }) => name === "events-relay"),
    );
    expect(spanNamed(relay, "events-relay").attributes).toMatchObject({ "faas.trigger": "timer" });
  });

  it("continues from the replay of a dead letter", async () => {
    const create = await leaveUnpublished();
    const traces = async () =>
      once(
        create.traceId,
        "the replayed event is stored",
        (all) => all.filter(({ name }) => name === "notification.store").length === 2 && all.some(isRepublished),
      );
    await lotus.database.query(
      `with gone as (delete from events.outbox o returning o.*)
       insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
       select g.id, 'notification-store', 'test', (events.envelope(g::events.outbox) -> 'event') - 'data', convert_to(g.data::text, 'UTF8')
       from gone g`,
    );
    await lotus.database.query("select events.replay(d.id) from events.dead_letters d");
    await relayNow(lotus);
    const deliveries = (await traces()).filter(({ name }) => name === PROCESS);
    expect(deliveries.map(({ parentSpanId }) => parentSpanId)).toEqual([create.spanId, create.spanId]);
  });

  it("continues where a reader settles the event", async () => {
    const create = await leaveUnpublished();
    const id = create.traceId;
    const { status, headers } = await user.call("GET /notification");
    expect(status).toBe(200);
    const readerTrace = headers.get("traceresponse")?.split("-")[1] ?? "";
    const spans = await once(id, "the reader's settling is in the trace", (all) =>
      all.some(({ attributes }) => attributes["lotus.outcome"] === "settled by reader"),
    );
    const settling = spans.find(({ attributes }) => attributes["lotus.outcome"] === "settled by reader");
    const reader = await once(readerTrace, "the reader's statement is in its trace", (all) =>
      ["GET /notification", "notification.store"].every((name) => all.some((span) => span.name === name)),
    );
    const request = spanNamed(reader, "GET /notification");
    expect(settling).toMatchObject({
      name: PROCESS,
      service: "notification",
      parentSpanId: spanNamed(spans, CREATE).spanId,
      links: [{ traceId: readerTrace, spanId: request.spanId }],
    });
    const statement = spanNamed(reader, "notification.store");
    expect(statement.parentSpanId).toBe(request.spanId);
    expect(statement.links).toContainEqual({ traceId: id, spanId: settling?.spanId });
  });

  it("links the calls of a batch and their statement in both directions", async () => {
    const answers = await Promise.all(Array.from({ length: 40 }, () => user.call("POST /billing/add-money?money=1")));
    const ids = answers.map(({ headers }) => headers.get("traceresponse")?.split("-")[1] ?? "");
    const spansOfAll = () => ids.flatMap((id) => receiverOf(lotus).trace(id));
    const batch = await eventually("a statement with several calls", () =>
      spansOfAll().find(
        ({ name, attributes }) => name === "billing.deposit" && Number(attributes["lotus.batch.calls"]) > 1,
      ),
    );
    const waits = await eventually("each call of the batch has waited", () => {
      const found = spansOfAll().filter(
        ({ name, links }) => name === "wait billing.deposit" && links[0]?.spanId === batch.spanId,
      );
      return found.length === batch.attributes["lotus.batch.calls"] && found;
    });
    const traces = new Set(waits.map(({ traceId }) => traceId));
    expect(new Set([batch.traceId, ...batch.links.map(({ traceId }) => traceId)])).toEqual(traces);
  });

  it("contains no token, no password and no email", async () => {
    const all = JSON.stringify(
      receiverOf(lotus)
        .traceIds()
        .map((id) => receiverOf(lotus).trace(id)),
    );
    expect(all).toContain(PAY);
    for (const secret of [user.token, user.password, user.email, "@example.com", "late"])
      expect(all).not.toContain(secret);
  });

  /** Returns the last values of a metric. */
  const valuesOf = (name: Metric, service: string) =>
    receiverOf(lotus)
      .metrics()
      .filter((metric) => metric.name === name && metric.service === service)
      .map(({ value }) => value);

  it("is accompanied by every metric", async () => {
    await lotus.tick("billing-seal");
    await lotus.tick();
    const seen = () =>
      new Set(
        receiverOf(lotus)
          .metrics()
          .map(({ name }) => name),
      );
    const expected = Object.keys(METRICS).filter((name) => name !== "lotus.lane.calls");
    await eventually(`the metrics ${expected.join(", ")} arrive`, () => expected.every((name) => seen().has(name)));
    const balances = valuesOf("lotus.trial_balance", "events-relay");
    expect(balances.length).toBeGreaterThan(0);
    expect(balances.filter((value) => value !== 0)).toEqual([]);
  });

  it("is accompanied by the age of the last seal", async () => {
    await lotus.tick("billing-seal");
    await lotus.database.query("update billing.seals set sealed_at = sealed_at - interval '2 hours'");
    await lotus.tick("events-relay");
    const isTwoHours = (seconds: number) => seconds >= 2 * HOUR_SECONDS && seconds < 3 * HOUR_SECONDS;
    await eventually("the seal is two hours old", () => valuesOf("lotus.seal.age", "events-relay").some(isTwoHours));
    // The last seal counts, beside older ones.
    await lotus.tick("billing-seal");
    await lotus.tick("events-relay");
    await eventually("the new seal is not an hour old", () =>
      valuesOf("lotus.seal.age", "events-relay").some((seconds) => seconds < HOUR_SECONDS),
    );
  });

  it("is accompanied by the figures of a ledger that is wrong, of an old event and of a dead letter", async () => {
    // A trigger of the ledger refuses such a change.
    await lotus.database.query("alter table billing.accounts disable trigger user");
    await lotus.database.query("update billing.accounts set balance = balance + 7 where id = $1", [user.id]);
    await lotus.database.query("alter table billing.accounts enable trigger user");
    await lotus.database.query(
      `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting)
       select gen_random_uuid(), topic, type, source, subject, clock_timestamp() - interval '1 hour', '{}'::jsonb, awaiting
       from (values ('notification-requested', 'lotus.notification-requested.v1', '/test', 'nobody', array['notification-store']))
         event (topic, type, source, subject, awaiting)`,
    );
    await lotus.database.query(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
       values (gen_random_uuid(), 'notification-store', 'a reason', '{}', '')`,
    );
    await lotus.tick("events-relay");
    const reported = (name: Metric, isRight: (value: number) => boolean) =>
      eventually(`${name} is right`, () => valuesOf(name, "events-relay").some(isRight));
    await reported("lotus.trial_balance", (minorUnits) => minorUnits === 7);
    await reported("lotus.outbox.rows", (rows) => rows === 1);
    await reported("lotus.outbox.age", (seconds) => seconds >= HOUR_SECONDS && seconds < 2 * HOUR_SECONDS);
    await reported("lotus.dead_letters", (letters) => letters === 1);
  });

  it("is accompanied by the number of calls that wait for a locked row", async () => {
    // A process loads its exporter after its first answer.
    await user.call("POST /billing/add-money?money=1");
    const held = await holdAccount(lotus, user);
    const deposits = Array.from({ length: WAITING_CALLS }, () => user.call("POST /billing/add-money?money=1"));
    const once = (value: number) =>
      eventually(`${value} calls wait`, () => valuesOf("lotus.lane.calls", "billing-add-money").includes(value));
    await once(WAITING_CALLS);
    await held.release();
    expect((await Promise.all(deposits)).map(({ status }) => status)).toEqual(deposits.map(() => 200));
    await once(0);
  });
});
