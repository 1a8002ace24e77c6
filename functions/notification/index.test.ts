import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  eventually,
  newUser,
  settled,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

/** Writes events to the outbox without publishing them, as a process that is killed in between. */
async function recordUnpublished(user: TestUser, facts: readonly object[]): Promise<string[]> {
  const { rows } = await lotus.database.query(
    `select events.emit('notification-requested', 1, 'order-pay', $1, null, fact) -> 'event' ->> 'id' as id
      from jsonb_array_elements($2) with ordinality f(fact, n) order by n`,
    [user.id, JSON.stringify(facts.map((fact) => ({ userId: user.id, recipient: user.email, ...fact })))],
  );
  return rows.map(({ id }) => id);
}

const unsettled = async (user: TestUser) => {
  const { rows } = await lotus.database.query("select id from events.outbox where subject = $1", [user.id]);
  return rows.map(({ id }) => id);
};

/** Delivers an event of another producer to the trigger. */
const deliver = (data: unknown, headers: Record<string, string> = {}) =>
  fetch(`${lotus.manifests.functions.get("notification")?.K_SINK}/notification-store`, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "ce-specversion": "1.0",
      "ce-id": randomUUID(),
      "ce-source": "/elsewhere",
      "ce-type": "elsewhere.told",
      ...headers,
    },
    body: JSON.stringify(data),
  });

describe("GET /notification", () => {
  it("shows each with its id, message, email and time", async () => {
    const user = await newUser(lotus);
    const { status, body } = await user.call("GET /notification");
    expect([status, body]).toEqual([
      200,
      [
        {
          id: expect.stringMatching(/^[0-9a-f-]{36}$/),
          message: "Hello! You are welcome. Your account is open",
          email: user.email,
          createdAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
        },
      ],
    ]);
  });

  it("shows unpublished notifications, however many, and settles them", async () => {
    const user = await newUser(lotus);
    const messages = Array.from({ length: 250 }, (_, n) => `number ${n}`);
    await recordUnpublished(
      user,
      messages.map((message) => ({ kind: "message", message })),
    );
    const { body } = await user.call("GET /notification?limit=100");
    expect(body.map(({ message }: { message: string }) => message)).toEqual(messages.slice(-100).reverse());
    await settled(lotus);
  });

  it("shows a notification once whose event is on its way again", async () => {
    const user = await newUser(lotus);
    const [id] = await recordUnpublished(user, [{ kind: "message", message: "again" }]);
    expect((await user.call("GET /notification")).body).toHaveLength(2);
    await lotus.database.query(
      `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting)
       select id, 'notification-requested', 'sold', '/shop', user_id, created_at,
         jsonb_build_object('kind', 'message', 'userId', user_id, 'recipient', email, 'message', message), '{notification-store}'
       from notification.notifications where id = $1`,
      [id],
    );
    expect((await user.call("GET /notification")).body).toHaveLength(2);
  });

  it("shows the others when it cannot read an event, and leaves that event to the trigger", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    const [unreadable] = await recordUnpublished(user, [
      { kind: "unheard-of" },
      { kind: "message", message: "'); drop table x; -- <b>" },
    ]);
    const { status, body } = await user.call("GET /notification");
    expect([status, body[0].message, body.length]).toEqual([200, "'); drop table x; -- <b>", 2]);
    expect(await unsettled(user)).toEqual([unreadable]);
    await lotus.database.query("delete from events.outbox where id = $1", [unreadable]);
  });
});

describe("a foreign producer's message", () => {
  it("is shown unchanged, or moves to the dead letters when it cannot be stored", async () => {
    const user = await newUser(lotus);
    const fact = { userId: user.id, recipient: user.email, kind: "message" };
    expect((await deliver({ ...fact, message: "\u{1f44b} to <you>\n" })).status).toBe(204);
    expect((await deliver({ ...fact, message: "NUL: \u0000" })).status).toBe(204);
    const { body } = await user.call("GET /notification");
    expect(body[0].message).toBe("\u{1f44b} to <you>\n");
    const letters = await eventually("the dead letter exists", async () => {
      const { rows } = await lotus.database.query("select subscriber, reason from events.dead_letters");
      return rows.length > 0 && rows;
    });
    expect(letters).toEqual([{ subscriber: "notification-store", reason: expect.stringContaining("without NUL") }]);
  });
});

describe("notifications of many events", () => {
  it("are stored in shared statements, each once, while a reader settles the same events", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    const facts = Array.from({ length: 200 }, (_, n) => ({ kind: "message", message: `shared ${n}` }));
    const ids = await recordUnpublished(user, facts);
    const source = (await lotus.database.query("select source from events.outbox where id = $1", [ids[0]])).rows[0]
      .source;
    const deliveries = ids.map((id, n) =>
      deliver({ userId: user.id, recipient: user.email, ...facts[n] }, { "ce-id": id, "ce-source": source }),
    );
    const reads = Array.from({ length: 5 }, () => user.call("GET /notification?limit=100"));
    expect(new Set((await Promise.all(deliveries)).map(({ status }) => status))).toEqual(new Set([204]));
    expect(new Set((await Promise.all(reads)).map(({ status }) => status))).toEqual(new Set([200]));
    expect(await unsettled(user)).toEqual([]);
    const { rows } = await lotus.database.query(
      "select count(*)::int as stored, count(distinct id)::int as ids from notification.notifications where user_id = $1 and message like 'shared %'",
      [user.id],
    );
    expect(rows).toEqual([{ stored: 200, ids: 200 }]);
  });

  it("continue while another transaction has locked the event of one of them", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    const facts = Array.from({ length: 20 }, (_, n) => ({ kind: "message", message: `held ${n}` }));
    const ids = await recordUnpublished(user, facts);
    const source = (await lotus.database.query("select source from events.outbox where id = $1", [ids[0]])).rows[0]
      .source;
    const holder = new Client({ connectionString: lotus.adminUrl });
    await holder.connect();
    await holder.query("begin");
    await holder.query("select from events.outbox where id = $1 for update", [ids[0]]);
    const deliveries = ids.map((id, n) =>
      deliver({ userId: user.id, recipient: user.email, ...facts[n] }, { "ce-id": id, "ce-source": source }),
    );
    const [held, ...others] = deliveries;
    expect((await Promise.all(others)).every(({ status }) => status === 204)).toBe(true);
    expect(await unsettled(user)).toEqual([ids[0]]);
    await holder.query("rollback");
    await holder.end();
    expect((await held)?.status).toBe(204);
    expect(await unsettled(user)).toEqual([]);
  });
});
