import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  call,
  eventually,
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

/** Delivers what another producer has sent, as a source does. */
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

async function reasonOf(id: string): Promise<string> {
  const { rows } = await lotus.database.query("select reason from events.dead_letters where attributes ->> 'id' = $1", [
    id,
  ]);
  return rows[0]?.reason;
}

describe("an event of another producer", () => {
  it.each([
    ["begins with NUL, as a schema registry's do", Buffer.from([0, 0, 0, 0, 7, 2]), /^The data is not JSON in UTF-8: /],
    ["is no JSON", "private words", /^The data is not JSON in UTF-8: Unexpected token 'p'\.$/],
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
  ])("that %s is buried at once, with a reason that quotes nothing", async (_, given, reason) => {
    const id = randomUUID();
    const body = typeof given === "string" || Buffer.isBuffer(given) ? given : fact(given);
    expect((await deliver(body, { "ce-id": id })).status).toBe(204);
    expect(await reasonOf(id)).toMatch(reason);
    const line = await eventually("it is logged", () =>
      lotus.lines.get("notification-store")?.find((text) => text.includes(id)),
    );
    expect(line).not.toMatch(/example\.com|private/);
  });

  it("that is no CloudEvent is buried too, each one that is another", async () => {
    const { rows: before } = await lotus.database.query("select coalesce(max(id), 0) as last from events.dead_letters");
    for (const body of [fact(), fact({ message: "Another" }), fact()]) {
      const { status } = await call({ url: lotus.insideUrl }, "POST /notification-store", { body });
      expect(status).toBe(204);
    }
    const { rows } = await lotus.database.query(
      "select reason, convert_from(body, 'UTF8')::jsonb ->> 'message' as message from events.dead_letters where id > $1 order by id",
      [before[0].last],
    );
    const reason = "The request is not a CloudEvent: it has no id or no source.";
    expect(rows).toEqual([
      { reason, message: "Hello" },
      { reason, message: "Another" },
    ]);
  });

  it("may carry its data in Base64, as the JSON format has it", async () => {
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

  it("whose attributes hold what Postgres cannot keep is buried without it", async () => {
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
    ["9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59.999Z"],
    ["2026-01-02T03:04:05.123456Z", "2026-01-02T03:04:05.123Z"],
    ["2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05.000Z"],
  ])("of %s can be read as of %s", async (time, createdAt) => {
    const message = `of ${time}`;
    expect((await deliver(fact({ message }), { "ce-time": time })).status).toBe(204);
    const { status, body } = await user.call("GET /notification");
    expect(status).toBe(200);
    expect(body).toContainEqual(expect.objectContaining({ message, createdAt }));
  });
});
