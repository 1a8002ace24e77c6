import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Kafka } from "../../scripts/kafka/cluster.ts";
import { canStartKafka, endOf, leaveInOutbox, makeTopic, startTestKafka } from "../../scripts/testing/kafka.ts";
import {
  eventually,
  makeOverdue,
  newUser,
  settled,
  startTestLotus,
  type TestLotus,
} from "../../scripts/testing/lotus.ts";

const numbered = (count: number) => Array.from({ length: count }, (_, index) => `number ${index}`);

const NOT_PUBLISHED = "overdue events were not published; the next run tries again";

interface Line {
  readonly level: string;
  readonly message: string;
  readonly topic?: string;
  readonly count?: number;
  readonly reason?: string;
}

/** What the relay has written to its log. */
function said(lotus: TestLotus, message: string): Line[] {
  const lines = (lotus.lines.get("events-relay") ?? []).map((line) => JSON.parse(line) as Line);
  return lines.filter((line) => line.message === message);
}
/** As soon as there is any of it: lines come by a pipe, answers by a socket. */
async function heard(lotus: TestLotus, message: string, topic?: string): Promise<Line[]> {
  return eventually(`the relay has written "${message}"`, () => {
    const lines = said(lotus, message).filter((line) => topic === undefined || line.topic === topic);
    return lines.length > 0 && lines;
  });
}
const published = (lotus: TestLotus) =>
  said(lotus, "published overdue events").reduce((sum, { count = 0 }) => sum + count, 0);

async function notificationsOf(lotus: TestLotus, userId: string): Promise<{ all: number; different: number }> {
  const { rows } = await lotus.database.query(
    `select count(*)::int as all, count(distinct message)::int as different
     from notification.notifications where user_id = $1 and message like 'number %'`,
    [userId],
  );
  return rows[0];
}

async function outbox(lotus: TestLotus): Promise<{ waiting: number; attempts: number }> {
  const { rows } = await lotus.database.query(
    "select count(*)::int as waiting, coalesce(max(attempts), 0)::int as attempts from events.outbox",
  );
  return rows[0];
}

/** Leaves overdue events in the outbox for a topic that no trigger takes. */
async function emitUnheard(lotus: TestLotus, count: number): Promise<void> {
  await lotus.database.query(
    `select events.emit('unheard', 1, 'test', gen_random_uuid(), null, '{}') from generate_series(1, $1)`,
    [count],
  );
  await makeOverdue(lotus.database);
}

function refusesWhatIsTooLarge(lotusOf: () => TestLotus) {
  it("buries an event that no broker takes, with the reason, and publishes the others of its batch", async () => {
    const lotus = lotusOf();
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, ["x".repeat(1_300_000), ...numbered(20)]);
    await lotus.tick();
    await settled(lotus);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 20, different: 20 });
    const { rows } = await lotus.database.query(
      "delete from events.dead_letters returning subscriber, reason, attributes, length(body) as bytes",
    );
    expect(rows).toEqual([
      {
        subscriber: "notification-store",
        reason: expect.stringMatching(/ does not accept it: .*larg/),
        attributes: expect.objectContaining({ type: "lotus.notification-requested.v1", subject: user.id }),
        bytes: expect.any(Number),
      },
    ]);
    expect(rows[0].bytes).toBeGreaterThan(1_300_000);
    expect(await heard(lotus, "an event that no broker takes was buried")).toHaveLength(1);
  });
}

describe("the relay", () => {
  let lotus: TestLotus;
  beforeAll(async () => {
    lotus = await startTestLotus({ scheduled: false });
  });
  afterAll(() => lotus.stop());

  it("publishes all that is overdue, in as many batches as that takes, each event once", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(600));
    await lotus.tick();
    await settled(lotus);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 600, different: 600 });
    await eventually("it is written down", () => published(lotus) >= 600);
    expect(published(lotus)).toBe(600);
  });

  it("leaves alone what its writer may still be about to publish", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(1));
    await lotus.database.query("update events.outbox set attempted_at = clock_timestamp()");
    await lotus.tick();
    expect(await outbox(lotus)).toEqual({ waiting: 1, attempts: 0 });
    await makeOverdue(lotus.database);
    await lotus.tick();
    await settled(lotus);
  });

  it("takes large events a few at a time, and one that is larger than that alone", async () => {
    const claim = async () => {
      const { rows } = await lotus.database.query("select events.claim('10 s', 500, 1000) as claimed");
      return rows[0].claimed.length;
    };
    const sizes = [2_000, 400, 400, 400];
    for (const [index, size] of sizes.entries()) {
      await lotus.database.query(
        `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting, attempted_at) values
          (gen_random_uuid(), 'large', 't', 's', 's', now(), to_jsonb(repeat('x', $1)), '{}', timestamptz '2000-01-01' + $2 * interval '1 s')`,
        [size, index],
      );
    }
    expect([await claim(), await claim(), await claim(), await claim()]).toEqual([1, 2, 1, 0]);
    await lotus.database.query("delete from events.outbox where topic = 'large'");
  });

  it("does not put an event into a queue again that it may be standing in, because the queue is long", async () => {
    const insert = `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting, attempts, attempted_at)
      select gen_random_uuid(), 'queue', 't', 's', 's', now(), '{}', '{}', $1, clock_timestamp() - $2 * interval '1 s'
      from generate_series(1, $3)`;
    const claim = async () => {
      const { rows } = await lotus.database.query("select events.claim('10 s', 500, 100000) as claimed");
      return rows[0].claimed.length;
    };
    await lotus.database.query(insert, [1, 25, 1]);
    expect(await claim()).toBe(1);
    await lotus.database.query(insert, [0, 0, 9_000]);
    await lotus.database.query(insert, [1, 25, 1]);
    expect(await claim()).toBe(0);
    await lotus.database.query(insert, [1, 60, 1]);
    expect(await claim()).toBe(1);
    await lotus.database.query("delete from events.outbox where topic = 'queue'");
  });

  it("has nothing more to do for an event that its two subscribers settle at the same time", async () => {
    const { rows } = await lotus.database.query(
      `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting)
       values (gen_random_uuid(), 'two', 't', 's', 's', now(), '{}', '{one,other}') returning id`,
    );
    const [one, other] = [new Client(lotus.adminUrl), new Client(lotus.adminUrl)];
    try {
      await Promise.all([one.connect(), other.connect()]);
      await one.query("begin");
      await one.query("select events.settle_many(true, array[$1]::uuid[], 'one')", [rows[0].id]);
      const settling = other.query("select events.settle_many(true, array[$1]::uuid[], 'other')", [rows[0].id]);
      await eventually("the other one waits", async () => {
        const { rows: locks } = await lotus.database.query("select from pg_locks where not granted");
        return locks.length > 0;
      });
      await one.query("commit");
      await settling;
    } finally {
      await Promise.all([one.end(), other.end()]);
    }
    expect(await outbox(lotus)).toMatchObject({ waiting: 0 });
  });

  it("forgets what it has published and none of our triggers waits for", async () => {
    await emitUnheard(lotus, 3);
    await lotus.tick();
    expect(await outbox(lotus)).toEqual({ waiting: 0, attempts: 0 });
  });

  it("forgets old idempotency keys, however many, and no others", async () => {
    await lotus.database.query(
      `insert into events.idempotency_keys (service, user_id, key, fingerprint, created_at)
       select 'billing', gen_random_uuid(), 'a', 'b', now() - age * interval '1 day' from generate_series(1, 11_000), (values (6.9), (7.1)) ages (age)`,
    );
    await lotus.tick();
    const { rows } = await lotus.database.query(
      "select count(*)::int as all, min(created_at) > now() - interval '7 days' as young from events.idempotency_keys",
    );
    expect(rows).toEqual([{ all: 11_000, young: true }]);
  });

  refusesWhatIsTooLarge(() => lotus);
});

describe.skipIf(!canStartKafka)("the relay, before a real Kafka,", () => {
  let kafka: Kafka;
  let lotus: TestLotus;
  beforeAll(async () => {
    kafka = await startTestKafka();
    lotus = await startTestLotus({ kafka, scheduled: false });
  });
  afterAll(async () => {
    await lotus?.stop();
    await kafka?.stop();
  });

  refusesWhatIsTooLarge(() => lotus);

  it("run twice at the same time, publishes each event once", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    const before = await endOf(kafka.bootstrap, "notification-requested");
    await leaveInOutbox(lotus.database, user.id, numbered(600));
    await Promise.all([lotus.tick(), lotus.tick()]);
    expect(await endOf(kafka.bootstrap, "notification-requested")).toBe(before + 600);
    await settled(lotus);
  });

  it("killed in the middle, or refused by a broker that is down, leaves its batch to the next run", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    kafka.kill(0);
    await leaveInOutbox(lotus.database, user.id, numbered(700));
    const ticked = lotus.tick();
    await eventually("a batch is claimed", async () => (await outbox(lotus)).attempts === 1);
    const child = lotus.functions.get("events-relay")?.running?.child;
    child?.kill("SIGKILL");
    await ticked;
    await makeOverdue(lotus.database);
    const before = await outbox(lotus);
    await lotus.tick();
    const failed = await heard(lotus, NOT_PUBLISHED);
    expect(failed).toMatchObject([{ level: "error", count: 500, reason: expect.stringContaining("ECONNREFUSED") }]);
    expect(await outbox(lotus)).toEqual(before);
    await kafka.restart(0);
    await lotus.tick();
    await settled(lotus);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 700, different: 700 });
  });

  it("publishes the others while the brokers lack a topic, however many wait for that one, and those when it is there", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await emitUnheard(lotus, 600);
    await leaveInOutbox(lotus.database, user.id, numbered(20));
    await lotus.tick();
    await eventually("the others are settled", async () => (await outbox(lotus)).waiting === 600);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 20, different: 20 });
    expect(await outbox(lotus)).toEqual({ waiting: 600, attempts: 0 });
    const failed = await heard(lotus, NOT_PUBLISHED, "unheard");
    expect(failed.at(-1)).toMatchObject({ reason: expect.stringContaining("topic") });
    await makeTopic(kafka.bootstrap, "unheard", 1);
    await lotus.tick();
    expect(await outbox(lotus)).toEqual({ waiting: 0, attempts: 0 });
    expect(await endOf(kafka.bootstrap, "unheard")).toBe(600);
  });
});
