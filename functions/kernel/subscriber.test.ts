import { randomUUID } from "node:crypto";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { databaseOf } from "../../scripts/database/roles.ts";
import { type KafkaRecord, toMessage } from "../../scripts/sources/cloud-event.ts";
import {
  call,
  eventually,
  killFunction,
  newUser,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
});
afterAll(() => lotus.stop());

/** Delivers an event of another producer, as a source does. */
function deliver(body: unknown, attributes: Record<string, string> = {}) {
  const headers = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": randomUUID(),
    "ce-source": "/shop",
    "ce-type": "sold",
    ...attributes,
  };
  return call({ url: lotus.insideUrl }, "POST /notification-store", { body, headers });
}
const fact = (facts: object = {}) => ({
  kind: "message",
  userId: user.id,
  recipient: "somebody@example.com",
  message: "Hello",
  ...facts,
});

const count = async (text: string, values: unknown[] = []): Promise<number> =>
  (await lotus.database.query(`select count(*)::int as count from ${text}`, values)).rows[0].count;
const stored = (messages: readonly string[]) =>
  count("notification.notifications where message = any ($1)", [messages]);
const counts = async () => [await count("events.dead_letters"), await count("notification.notifications")];

async function reasonOf(id: string): Promise<string> {
  const { rows } = await lotus.database.query("select reason from events.dead_letters where attributes ->> 'id' = $1", [
    id,
  ]);
  return rows[0]?.reason;
}

describe("an event of another producer", () => {
  it.each([
    ["begins with NUL, as a schema registry's do", Buffer.from([0, 0, 0, 0, 7, 2]), /^The data is not JSON in UTF-8: /],
    ["is not JSON", "private words", /^The data is not JSON in UTF-8: Unexpected token 'p'\.$/],
    [
      "has an address of a megabyte",
      { recipient: `${"x".repeat(900_000)}@example.com` },
      /: recipient: must be an email address of at most 254 bytes\.$/,
    ],
    [
      "has an address with a NUL",
      { recipient: "a\0@example.com" },
      /: recipient: must be an email address of at most 254 bytes\.$/,
    ],
    [
      "has half a character for an address",
      { recipient: "\ud800@example.com" },
      /: recipient: must be an email address of at most 254 bytes\.$/,
    ],
  ])("that %s moves to the dead letters at once, with a reason that quotes nothing", async (_, given, reason) => {
    const id = randomUUID();
    const body = typeof given === "string" || Buffer.isBuffer(given) ? given : fact(given);
    expect((await deliver(body, { "ce-id": id })).status).toBe(204);
    expect(await reasonOf(id)).toMatch(reason);
    const line = await eventually("it is logged", () =>
      lotus.lines.get("notification-store")?.find((text) => text.includes(id)),
    );
    expect(line).not.toMatch(/example\.com|private/);
  });

  it("that a deployment's preflight sent is accepted without an effect", async () => {
    const before = await counts();
    const id = randomUUID();
    const { status } = await deliver("{}", { "ce-id": id, "ce-type": "lotus.preflight.v1" });
    expect(status).toBe(204);
    await eventually("it is logged", () =>
      lotus.lines.get("notification-store")?.find((text) => text.includes(id) && text.includes('"handled"')),
    );
    expect(await counts()).toEqual(before);
  });

  const structured = { specversion: "1.0", id: "1", source: "/shop", type: "sold" };
  it.each([
    ["text/plain", "{}"],
    ["application/json", structured],
    ["application/json", [structured]],
    ["application/cloudevents+xml", "<event/>"],
    ["", "{}"],
  ])("in no mode of CloudEvents is refused with 415, and leaves nothing behind: %j %j", async (type, body) => {
    const before = await counts();
    const { status, body: problem } = await call({ url: lotus.insideUrl }, "POST /notification-store", {
      body,
      headers: { "content-type": type },
    });
    expect([status, problem.code]).toEqual([415, "unsupported-media-type"]);
    expect(await counts()).toEqual(before);
  });

  it.each([
    [{ "ce-type": "" }, "the attribute type is"],
    [{ "ce-id": "" }, "the attribute id is"],
    [{ "ce-id": "", "ce-source": "" }, "the attributes id, source are"],
  ])(
    "without required attributes moves to the dead letters, and the reason names them: %j",
    async (attributes, are) => {
      const { rows: before } = await lotus.database.query(
        "select coalesce(max(id), 0) as last from events.dead_letters",
      );
      expect((await deliver(fact({ message: `no ${are}` }), attributes)).status).toBe(204);
      const { rows } = await lotus.database.query("select reason from events.dead_letters where id > $1", [
        before[0].last,
      ]);
      expect(rows).toEqual([{ reason: `The request is not a CloudEvent: ${are} missing or empty.` }]);
    },
  );

  it("in a batch is one of several: each is stored, or moves to the dead letters, by itself", async () => {
    const { rows: before } = await lotus.database.query("select coalesce(max(id), 0) as last from events.dead_letters");
    const event = (id: string, data: unknown) => ({ specversion: "1.0", id, source: "/batch", type: "sold", data });
    const messages = ["first of a batch", "second of a batch"];
    const { status } = await call({ url: lotus.insideUrl }, "POST /notification-store", {
      body: [event("1", fact({ message: messages[0] })), event("2", {}), 7, event("3", fact({ message: messages[1] }))],
      headers: { "content-type": "application/cloudevents-batch+json; charset=utf-8" },
    });
    expect(status).toBe(204);
    expect(await stored(messages)).toBe(2);
    const { rows } = await lotus.database.query(
      "select reason from events.dead_letters where id > $1 order by reason",
      [before[0].last],
    );
    expect(rows).toMatchObject([
      { reason: expect.stringMatching(/^The data is not that of notification-requested: /) },
      { reason: expect.stringMatching(/^The request is not a CloudEvent: /) },
    ]);
  });

  it("with the wrong content type in a record gets a reason that says so", async () => {
    const id = randomUUID();
    const structured = { specversion: "1.0", id: "1", source: "/shop", type: "sold", data: fact() };
    await deliver(structured, { "ce-id": id, "ce-type": "dev.knative.kafka.event" });
    expect(await reasonOf(id)).toMatch(
      /kind: is missing.*\. It looks like a structured CloudEvent with another content type than application\/cloudevents\+json/,
    );
  });

  it("with the id of an event in the outbox neither settles nor replaces it", async () => {
    const { rows } = await lotus.database.query(
      `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting, attempted_at)
       select gen_random_uuid(), 'notification-requested', 'lotus.notification-requested.v1',
         events.source_of('order-pay'), $1, now(), $2, '{notification-store}', now() + interval '1 minute' returning id`,
      [user.id, fact({ message: "the one in the outbox" })],
    );
    const { id } = rows[0];
    for (const source of ["/acme", "/lotus/order-pay", `/lotus/${randomUUID()}/order-pay`]) {
      await deliver(fact({ message: `from ${source}` }), { "ce-id": id, "ce-source": source });
    }
    const left = await lotus.database.query("select awaiting from events.outbox where id = $1", [id]);
    expect(left.rows).toEqual([{ awaiting: ["notification-store"] }]);
    expect(await stored(["from /acme", "from /lotus/order-pay"])).toBe(2);
    await user.call("GET /notification");
    expect(await stored(["the one in the outbox"])).toBe(1);
    expect((await lotus.database.query("select from events.outbox where id = $1", [id])).rowCount).toBe(0);
  });

  it("of another installation moves to the dead letters with that reason", async () => {
    const [id, other] = [randomUUID(), randomUUID()];
    const type = "lotus.notification-requested.v1";
    const message = `from ${other}`;
    await deliver(fact({ message }), { "ce-id": id, "ce-source": `/lotus/${other}/order-pay`, "ce-type": type });
    expect(await reasonOf(id)).toMatch(
      new RegExp(`^The event belongs to the installation ${other}, .* KAFKA_PREFIX\\.$`),
    );
    expect(await stored([message])).toBe(0);
  });

  it.each(["/lotus/other-shop", "/acme", `/lotus/${randomUUID()}/order-pay`])(
    "that failed becomes a dead letter, also when its source is %s",
    async (source) => {
      const id = randomUUID();
      const { status } = await call({ url: lotus.insideUrl }, "POST /events-dead-letter", {
        body: {},
        headers: {
          "ce-specversion": "1.0",
          "ce-id": id,
          "ce-source": source,
          "ce-type": "sold",
          "ce-knativeerrordest": "http://notification-store.lotus",
          "ce-knativeerrorcode": "500",
        },
      });
      expect(status).toBe(204);
      expect(await reasonOf(id)).toMatch(/^Every delivery failed: the function answered 500/);
    },
  );

  it.each([
    ["日本", "中国"],
    ["%41", "A"],
    [" 7", "7"],
    ["7\t ", "7"],
  ])("with the id %j differs from one with the id %j, and each is stored once", async (one, other) => {
    const messages = [one, other].map((id) => `${id} ${randomUUID()}`);
    const requests = [one, other].map((id, index) => {
      const record: KafkaRecord = {
        topic: "notification-requested",
        partition: 0,
        offset: String(index),
        timestamp: "0",
        key: null,
        value: Buffer.from(JSON.stringify(fact({ message: messages[index] }))),
        headers: { ce_specversion: "1.0", ce_id: id, ce_source: "/acme", ce_type: "sold" },
      };
      return toMessage(record, { name: "notification-store", namespace: "lotus" });
    });
    for (const { headers, body } of [...requests, ...requests]) {
      const { status } = await call({ url: lotus.insideUrl }, "POST /notification-store", { headers, body });
      expect(status).toBe(204);
    }
    expect(await stored(messages)).toBe(2);
  });

  it("is stored in a dead letter up to the limits", async () => {
    const id = randomUUID();
    const long = Object.fromEntries(Array.from({ length: 20 }, (_, n) => [`ce-ext${n}`, "x".repeat(20_000)]));
    await deliver("x".repeat(1_200_000), { "ce-id": id, ...long });
    const { rows } = await lotus.database.query(
      `select length(body) as bytes, length(attributes::text) as attributes, attributes ->> 'source' as source, reason
       from events.dead_letters where attributes ->> 'id' = $1`,
      [id],
    );
    expect(rows).toEqual([
      {
        bytes: 65_536,
        attributes: expect.any(Number),
        source: "/shop",
        reason:
          "The data has 1200000 bytes; at most 1048576 are accepted. The first 65536 of 1200000 bytes are stored.",
      },
    ]);
    expect(rows[0].attributes).toBeLessThan(70_000);
  });

  it("may contain its data in Base64, as in the JSON format", async () => {
    const message = `in Base64 ${randomUUID()}`;
    const { status } = await call({ url: lotus.insideUrl }, "POST /notification-store", {
      body: {
        specversion: "1.0",
        id: randomUUID(),
        source: "/shop",
        type: "sold",
        data_base64: Buffer.from(JSON.stringify(fact({ message }))).toString("base64"),
      },
      headers: { "content-type": "application/cloudevents+json" },
    });
    expect(status).toBe(204);
    expect((await user.call("GET /notification?limit=1")).body).toMatchObject([{ message }]);
  });

  it("whose attributes contain characters that Postgres cannot store moves to the dead letters without them", async () => {
    const structured = {
      specversion: "1.0",
      id: "with NUL\0",
      source: "/shop",
      type: "lotus.notification-requested.v9",
    };
    const { status } = await call({ url: lotus.insideUrl }, "POST /notification-store", {
      body: { ...structured, subject: "\ud800", data: fact() },
      headers: { "content-type": "application/cloudevents+json" },
    });
    expect(status).toBe(204);
    expect(await reasonOf("with NUL\ufffd")).toMatch(/^The type lotus\.notification-requested\.v9 is not known here/);
  });

  it.each([
    ["2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05.123Z"],
    ["2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05.000Z"],
  ])("of %s can be read as of %s", async (time, createdAt) => {
    const message = `of ${time}`;
    expect((await deliver(fact({ message }), { "ce-time": time })).status).toBe(204);
    const { status, body } = await user.call("GET /notification");
    expect(status).toBe(200);
    expect(body).toContainEqual(expect.objectContaining({ message, createdAt }));
  });

  it.each(["9999-12-31T23:59:59.9999999Z", "2999-01-01T00:00:00Z"])(
    "of %s, in the future, is stored as of the present, so that it expires like any other",
    async (time) => {
      const message = `of ${time}`;
      const present = async () => (await lotus.database.query("select clock_timestamp() as at")).rows[0].at as Date;
      const before = await present();
      expect((await deliver(fact({ message }), { "ce-time": time })).status).toBe(204);
      const { rows } = await lotus.database.query(
        "select created_at from notification.notifications where message = $1",
        [message],
      );
      expect(rows).toHaveLength(1);
      expect(rows[0].created_at.getTime()).toBeGreaterThanOrEqual(before.getTime());
      expect(rows[0].created_at.getTime()).toBeLessThanOrEqual((await present()).getTime());
    },
  );
});

/** Above DATABASE_AWAY_MILLISECONDS_MAX. */
const READ_ONLY_MILLISECONDS_MAX = 28_000;

describe("a database that cannot write", () => {
  let other: TestLotus;
  beforeAll(async () => {
    other = await startTestLotus();
  });
  afterAll(() => other.stop());

  const send = (id: string) =>
    call({ url: other.insideUrl }, "POST /notification-store", {
      body: fact({ message: id }),
      headers: {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-source": "/shop",
        "ce-type": "sold",
      },
    });
  /** For new sessions. */
  const configure = async (text: string) => {
    const server = new Client(other.adminUrl);
    await server.connect();
    await server.query("set default_transaction_read_only = off");
    await server.query(`alter database ${server.escapeIdentifier(databaseOf(other.adminUrl))} ${text}`);
    await server.end();
  };

  it("is waited for when it is read-only, and the event is stored once afterwards", async () => {
    await configure("set default_transaction_read_only = on");
    killFunction(other, "notification-store");
    const id = randomUUID();
    let answered = false;
    const sending = send(id).finally(() => {
      answered = true;
    });
    // Two steps of the wait: an error that the trigger does not wait for is answered within milliseconds.
    await eventually("the function has tried again", () =>
      other.lines.get("notification-store")?.some((line) => line.includes("read-only")),
    );
    expect(answered).toBe(false);
    await configure("reset default_transaction_read_only");
    expect((await sending).status).toBe(204);
    const { rows } = await other.database.query("select id from notification.notifications where message = $1", [id]);
    expect(rows).toHaveLength(1);
  });

  it("loses no event while it is read-only for longer than the trigger waits", async () => {
    await configure("set default_transaction_read_only = on");
    killFunction(other, "notification-store");
    const id = randomUUID();
    const accepted = await call({ url: other.insideUrl }, "POST /", {
      body: fact({ message: id }),
      headers: {
        "content-type": "application/json",
        "lotus-topic": "notification-requested",
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-source": "/shop",
        "ce-type": "sold",
      },
    });
    expect(accepted.status).toBe(202);
    await eventually(
      "the trigger has failed, and the source tries again",
      () => other.lines.get("notification-store")?.some((line) => line.includes(id) && line.includes('"error"')),
      READ_ONLY_MILLISECONDS_MAX,
    );
    await configure("reset default_transaction_read_only");
    killFunction(other, "notification-store");
    await eventually("it is stored", async () => {
      const { rowCount } = await other.database.query("select from notification.notifications where message = $1", [
        id,
      ]);
      return rowCount === 1;
    });
    expect((await other.database.query("select from events.dead_letters")).rowCount).toBe(0);
  }, 60_000);

  it("fails at once when the event is the cause", async () => {
    await other.database.query("alter table notification.notifications add check (message <> 'refused')");
    const began = performance.now();
    expect((await send("refused")).status).toBe(500);
    expect(performance.now() - began).toBeLessThan(10_000);
  });
});
