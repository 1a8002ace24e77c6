import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PROGRAM, ROOT } from "../project/paths.ts";
import { expectInvariants } from "../testing/invariants.ts";
import {
  call,
  eventually,
  newUser,
  relayNow,
  settled,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../testing/lotus.ts";

const run = promisify(execFile);
let lotus: TestLotus;
let user: TestUser;
/** The numbers of the dead letters, by the ids of their events. */
const letters = new Map<string, string>();

/** The most memory that the command may use, in KiB, as `process.resourceUsage()` counts. */
const MEMORY_KIBIBYTES_MAX = 150 * 1024;
/** Makes a Node program print its most memory when it ends. */
const PRINT_MEMORY = `--import=data:text/javascript,${encodeURIComponent('process.on("exit", () => console.error("memory", process.resourceUsage().maxRSS))')}`;

/** Runs `npm run dead-letters` without npm. */
async function command(...words: string[]): Promise<{ code: number; out: string; err: string; kibibytes: number }> {
  const args = [PROGRAM, "dead-letters", "--database", lotus.adminUrl, ...words];
  const { code, stdout, stderr } = await run(process.execPath, args, {
    cwd: ROOT,
    env: { ...process.env, NO_COLOR: "1", NODE_OPTIONS: PRINT_MEMORY },
  }).then(
    (ended) => ({ code: 0, ...ended }),
    (error: { code: number; stdout: string; stderr: string }) => error,
  );
  const kibibytes = Number(/^memory (\d+)$/m.exec(stderr)?.[1]);
  return { code, out: stdout, err: stderr.replace(/^memory .*\n/m, ""), kibibytes };
}

beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
  const bus = { url: lotus.manifests.functions.get("order-pay")?.K_SINK ?? "" };
  // The third event has a later version, which this trigger does not support yet.
  const fact = { userId: user.id, recipient: user.email, kind: "message", message: "from afar" };
  for (const [id, version, body] of [
    ["broken", 1, "{half"],
    ["wrong", 1, { kind: "gossip" }],
    ["early", 2, fact],
  ] as const) {
    const headers = {
      "ce-specversion": "1.0",
      "ce-id": id,
      "ce-source": "/elsewhere",
      "ce-type": `lotus.notification-requested.v${version}`,
      "ce-subject": user.id,
    };
    await call(bus, "POST /", { body, headers });
  }
  await eventually("three have moved", async () => {
    const { rows } = await lotus.database.query("select id, attributes ->> 'id' as event from events.dead_letters");
    for (const { id, event } of rows) letters.set(event, id);
    return letters.size === 3;
  });
});
afterAll(() => lotus.stop());

describe("dead-letters", () => {
  it("lists them, one in each line, with the reason", async () => {
    const { code, out } = await command();
    expect(code).toBe(0);
    const lines = out
      .replace(/^Database .*\n/, "")
      .trimEnd()
      .split("\n");
    expect(lines[0]).toMatch(/^ +id +since \(UTC\) +subscriber +type +reason$/);
    expect(lines).toHaveLength(1 + 3);
    const [broken, wrong, early] = ["broken", "wrong", "early"].map((event) =>
      lines.find((line) => line.startsWith(`  ${letters.get(event)} `)),
    );
    expect(broken).toMatch(/ notification-store +lotus\.notification-requested\.v1 +The data is not JSON in UTF-8: /);
    expect(wrong).toMatch(/ The data is not that of notification-requested: /);
    expect(early).toMatch(/ The type lotus\.notification-requested\.v2 is not known here; /);
  });

  it("shows one with its attributes and data", async () => {
    const { code, out } = await command("show", letters.get("broken") ?? "");
    expect(code).toBe(0);
    expect(out).toMatch(/\nnotification-store could not handle this event\. The data is not JSON in UTF-8: .+\.\n/);
    expect(out).toMatch(/\n +source +\/elsewhere\n/);
    expect(out.trimEnd().split("\n").at(-1)).toBe("{half");
  });

  it.each([
    [["show"], `"show" is not an action of lotus dead-letters. Use list, show ID, replay ID, replay all or drop ID.`],
    [["list", "3"], `"list 3" is not an action`],
    [["erase", "3"], `"erase 3" is not an action`],
    [["replay", "3x"], `"replay 3x" is not an action`],
    [["show", "all"], `"show all" is not an action`],
    [["show", "999"], "No dead letter has the id 999."],
    [["replay", "99999999999999999999"], "No dead letter has the id 99999999999999999999."],
    [["show", "99999999999999999999"], "No dead letter has the id 99999999999999999999."],
  ])("refuses %j with an error message", async (words, sentence) => {
    const { code, out, err } = await command(...words);
    const isUsage = sentence.includes("is not an action");
    expect([code, err]).toEqual([isUsage ? 2 : 1, expect.stringContaining(sentence)]);
    expect(out).toMatch(isUsage ? /^$/ : /^Database \S+ at 127\.0\.0\.1:\d+\n$/);
    expect(err.trimEnd().split("\n")).toHaveLength(1);
  });

  it("keeps a dead letter without readable data, and reports it", async () => {
    const { code, out, err } = await command("replay", letters.get("broken") ?? "");
    expect(code).toBe(1);
    expect(err).toMatch(/^Dead letter \d+ stays: its data is not JSON in UTF-8 \(.+\)\.\n$/);
    expect(out).toMatch(/\n0 put back/);
    expect((await lotus.database.query("select from events.dead_letters")).rowCount).toBe(3);
  });

  it("escapes control characters of foreign text, and replays an event with any time and type", async () => {
    const message = `an unknown type ${Date.now()}`;
    const { rows } = await lotus.database.query(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
       values (gen_random_uuid(), 'notification-store', E'\u001b[2J', $1, $2) returning id`,
      [
        { id: "7", source: "/ключ 1%", type: "com.example.notify", time: "sometime", subject: "\u001b]0;pwned\u0007" },
        JSON.stringify({ kind: "message", userId: user.id, recipient: user.email, message }),
      ],
    );
    const { out: shown } = await command("show", rows[0].id);
    expect(shown).toContain("\\u001b[2J");
    expect(shown + (await command()).out).not.toMatch(/(?!\n)\p{Cc}/u);
    expect((await command("replay", rows[0].id)).code).toBe(0);
    await relayNow(lotus);
    await eventually("the message is stored", async () => {
      const { body } = await user.call("GET /notification");
      return body.some((notification: { message: string }) => notification.message === message);
    });
    await lotus.database.query("delete from notification.notifications where message = $1", [message]);
  });

  it("replays an event whose attributes a broker or an index would refuse, and keeps its origin", async () => {
    const message = `long ago ${Date.now()}`;
    const attributes = {
      id: "line\nbreak",
      source: "/acme",
      type: "sold\n",
      time: "2999-01-01T00:00:00Z",
      subject: randomBytes(4_000).toString("hex"),
      traceparent: "00-no\ntrace",
    };
    const { rows } = await lotus.database.query(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
       values (gen_random_uuid(), 'notification-store', 'r', $1, $2) returning id, event_key`,
      [attributes, JSON.stringify({ kind: "message", userId: user.id, recipient: user.email, message })],
    );
    expect((await command("replay", rows[0].id)).code).toBe(0);
    const { rows: envelopes } = await lotus.database.query(
      "select events.envelope(o) -> 'event' as event, events.installation_id() as own, o.time <= clock_timestamp() as past from events.outbox o where id = $1",
      [rows[0].event_key],
    );
    const { event, own, past } = envelopes[0];
    expect(past).toBe(true);
    expect(event).toMatchObject({
      id: rows[0].event_key,
      source: `/lotus/${own}/dead-letters`,
      type: "sold?",
      subject: rows[0].event_key,
      originalid: "line?break",
      originalsource: "/acme",
    });
    expect(event.traceparent).toBeUndefined();
    await relayNow(lotus);
    await settled(lotus);
    await lotus.database.query("delete from notification.notifications where message = $1", [message]);
  });

  it("lists the newest of many, counts the others, and does not read 400 MB of bodies", async () => {
    await lotus.database.query(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes, body)
       select gen_random_uuid(), 'many', 'reason ' || n, '{"type": "sold"}', convert_to(repeat('x', case when n > 900 then 1048576 else 10 end), 'UTF8')
       from generate_series(1, 1300) n`,
    );
    const { out, kibibytes } = await command();
    expect(kibibytes).toBeLessThan(MEMORY_KIBIBYTES_MAX);
    const lines = out
      .replace(/^Database .*\n/, "")
      .trimEnd()
      .split("\n");
    expect(lines).toHaveLength(1 + 1_000 + 1);
    expect(lines[1]).toMatch(/ many +sold +reason 1300$/);
    expect(lines.at(-1)).toMatch(/^… and 30\d older ones\.$/);
    expect(out.length).toBeLessThan(200_000);
    await lotus.database.query("delete from events.dead_letters where subscriber = 'many'");
  });

  it("deletes one", async () => {
    const { rows } = await lotus.database.query(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes)
       values (gen_random_uuid(), 's', 'r', '{}') returning id`,
    );
    expect((await command("drop", rows[0].id)).out).toContain(`\nDead letter ${rows[0].id} is deleted.\n`);
    expect((await lotus.database.query("select from events.dead_letters where id = $1", [rows[0].id])).rowCount).toBe(
      0,
    );
    expect((await command("drop", rows[0].id)).code).toBe(1);
  });

  it("replays one: a wrong event becomes a dead letter again, and a corrected one has its effect", async () => {
    // Instead of a subscriber for the new version, the test gives the event the old version.
    await lotus.database.query(
      `update events.dead_letters set attributes = attributes || '{"type": "lotus.notification-requested.v1"}' where id = $1`,
      [letters.get("early")],
    );
    const { code, out } = await command("replay", letters.get("early") ?? "");
    expect([code, out]).toEqual([
      0,
      expect.stringMatching(/\n1 put back into the outbox; the relay publishes them in about a minute\.\n$/),
    ]);
    await relayNow(lotus);
    await eventually("the message is stored", async () => {
      const { body } = await user.call("GET /notification");
      return body.some(({ message }: { message: string }) => message === "from afar");
    });
    expect((await command("replay", letters.get("wrong") ?? "")).code).toBe(0);
    await relayNow(lotus);
    await eventually("the wrong event is a dead letter again", async () => {
      const { rows } = await lotus.database.query("select reason from events.dead_letters where id <> $1", [
        letters.get("broken"),
      ]);
      return rows.length === 1 && rows[0].reason.startsWith("The data is not that of");
    });
    await lotus.database.query(
      "delete from events.dead_letters; delete from notification.notifications where message = 'from afar'",
    );
    await expectInvariants(lotus);
    expect((await command("replay", "all")).out).toMatch(/\n0 put back/);
    expect((await command()).out).toMatch(/\nThe list of dead letters is empty\.\n$/);
  });
});
