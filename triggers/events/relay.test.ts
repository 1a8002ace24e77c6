import { fork } from "node:child_process";
import { once } from "node:events";
import { Client } from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { PUBLISH_ATTEMPTS_MAX } from "#kernel/limits";
import { bundleOf } from "../../scripts/build/bundles.ts";
import type { Kafka } from "../../scripts/kafka/cluster.ts";
import {
  canStartKafka,
  endOf,
  leaveInOutbox,
  makeTopic,
  startSink,
  startTestKafka,
} from "../../scripts/testing/kafka.ts";
import {
  call,
  eventually,
  makeOverdue,
  newUser,
  roleOf,
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

/** The log lines of the relay. */
function said(lotus: TestLotus, message: string): Line[] {
  const lines = (lotus.lines.get("events-relay") ?? []).map((line) => JSON.parse(line) as Line);
  return lines.filter((line) => line.message === message);
}
/** Waits, because lines arrive by a pipe and answers by a socket. */
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

/** Writes overdue events for a topic without a trigger to the outbox. */
async function emitUnheard(lotus: TestLotus, count: number): Promise<void> {
  await lotus.database.query(
    `select events.emit('unheard', 1, 'test', gen_random_uuid(), null, '{}') from generate_series(1, $1)`,
    [count],
  );
  await makeOverdue(lotus.database);
}

function refusesWhatIsTooLarge(lotusOf: () => TestLotus) {
  it("moves an event that the broker refuses to the dead letters, and publishes the others of its batch", async () => {
    const lotus = lotusOf();
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, ["x".repeat(1_300_000), ...numbered(20)]);
    await lotus.tick("events-relay");
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
    expect(await heard(lotus, "the broker refuses an event; it moved to the dead letters")).toHaveLength(1);
  });
}

describe("the relay", () => {
  let lotus: TestLotus;
  beforeAll(async () => {
    lotus = await startTestLotus({ scheduled: false });
  });
  afterAll(() => lotus.stop());

  it("publishes every overdue event once, in several batches", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(600));
    await lotus.tick("events-relay");
    await settled(lotus);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 600, different: 600 });
    await eventually("the log line is written", () => published(lotus) >= 600);
    expect(published(lotus)).toBe(600);
  });

  it("does not publish an event that its function may still publish", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(1));
    await lotus.database.query("update events.outbox set attempted_at = clock_timestamp()");
    await lotus.tick("events-relay");
    expect(await outbox(lotus)).toEqual({ waiting: 1, attempts: 0 });
    await makeOverdue(lotus.database);
    await lotus.tick("events-relay");
    await settled(lotus);
  });

  it("claims few large events at a time, and a very large one alone", async () => {
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

  it("does not publish an event again while a long queue may still contain it", async () => {
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

  it("does not publish an event that its two subscribers settled at the same time", async () => {
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
        const { rows: locks } = await lotus.database.query(
          "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        );
        return locks.length > 0;
      });
      await one.query("commit");
      await settling;
    } finally {
      await Promise.all([one.end(), other.end()]);
    }
    expect(await outbox(lotus)).toMatchObject({ waiting: 0 });
  });

  it("moves an event that no subscriber settles to the dead letters after the last attempt, from where it can be replayed", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(2));
    await lotus.database.query(
      `update events.outbox set awaiting = '{removed-trigger}', attempts = 12,
         attempted_at = now() - case data ->> 'message' when 'number 0' then interval '11 minutes' else interval '9 minutes' end`,
    );
    await lotus.tick("events-relay");
    const { rows } = await lotus.database.query(
      "delete from events.dead_letters returning subscriber, reason, from_outbox, attributes ->> 'subject' as subject",
    );
    expect(rows).toEqual([
      {
        subscriber: "removed-trigger",
        reason: "It was published 12 times and never settled.",
        from_outbox: true,
        subject: user.id,
      },
    ]);
    expect(await outbox(lotus)).toEqual({ waiting: 1, attempts: 12 });
    await lotus.database.query("delete from events.outbox");
  });

  it("publishes an event whose last attempt is in the future, because a clock was wrong", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(1));
    await lotus.database.query("update events.outbox set attempted_at = now() + interval '1 year'");
    await lotus.tick("events-relay");
    await settled(lotus);
  });

  it("claims a fresh event first and within a second while 100 000 others are never settled", async () => {
    const stuck = (attempts: number, due: boolean) =>
      lotus.database.query(
        `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting, attempts, attempted_at)
         select gen_random_uuid(), 'stuck', 't', 's', 's', now(), '{}', '{nobody}', $1,
           now() - case when $2 then interval '1 day' else interval '0' end from generate_series(1, 50000)`,
        [attempts, due],
      );
    await stuck(5, true);
    await stuck(1, false);
    const fresh = await lotus.database.query(
      `insert into events.outbox (id, topic, type, source, subject, time, data, awaiting, attempted_at)
       values (gen_random_uuid(), 'fresh', 't', 's', 's', now(), '{}', '{nobody}', now() - interval '11 s') returning id`,
    );
    const began = performance.now();
    const { rows } = await lotus.database.query(
      "select events.claim('10 s', 1, 100000) -> 0 -> 'event' ->> 'id' as id, events.claim('10 s', 500, 100000) as others",
    );
    expect(performance.now() - began).toBeLessThan(1_000);
    expect(rows[0].id).toBe(fresh.rows[0].id);
    expect(rows[0].others).toHaveLength(500);
    await lotus.database.query("delete from events.outbox");
  });

  it("settles a backlog that is longer than the local bus accepts, in one run, each event once", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await leaveInOutbox(lotus.database, user.id, numbered(12_000));
    const before = published(lotus);
    await lotus.tick("events-relay");
    await settled(lotus);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 12_000, different: 12_000 });
    await eventually("the log line is written", () => published(lotus) - before >= 12_000);
    expect(published(lotus) - before).toBe(12_000);
    expect(said(lotus, NOT_PUBLISHED)).toEqual([]);
  });

  it("does not count an attempt while the broker and the database fail at the same time", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    const release = `execute on function events.release(uuid[])`;
    const role = roleOf(lotus, "events");
    lotus.disturbBus("refuse");
    await lotus.database.query(`revoke ${release} from ${role}`);
    await leaveInOutbox(lotus.database, user.id, numbered(20));
    await lotus.tick("events-relay");
    expect(await outbox(lotus)).toEqual({ waiting: 20, attempts: 1 });
    lotus.disturbBus("deliver");
    await lotus.database.query(`grant ${release} to ${role}`);
    // As after the last publication: the release must come before events at the limit of publications move to the dead letters.
    await lotus.database.query(
      "update events.outbox set attempts = $1, attempted_at = attempted_at - interval '11 minutes'",
      [PUBLISH_ATTEMPTS_MAX],
    );
    await lotus.tick("events-relay");
    await eventually("the events are settled", async () => (await outbox(lotus)).waiting === 0);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 20, different: 20 });
    const { rows } = await lotus.database.query("select reason from events.dead_letters");
    expect(rows).toEqual([]);
  });

  it("publishes other events while another session locks an event that it must release", async () => {
    const [locked, free] = [await newUser(lotus), await newUser(lotus)];
    await settled(lotus);
    const release = `execute on function events.release(uuid[])`;
    const role = roleOf(lotus, "events");
    lotus.disturbBus("refuse");
    await lotus.database.query(`revoke ${release} from ${role}`);
    await leaveInOutbox(lotus.database, locked.id, numbered(1));
    await lotus.tick("events-relay");
    lotus.disturbBus("deliver");
    await lotus.database.query(`grant ${release} to ${role}`);
    await leaveInOutbox(lotus.database, free.id, numbered(1));
    const holder = new Client({ connectionString: lotus.adminUrl });
    await holder.connect();
    await holder.query("begin");
    await holder.query("select from events.outbox where subject = $1 for update", [locked.id]);
    await lotus.tick("events-relay");
    await eventually("the free event is settled", async () => (await outbox(lotus)).waiting === 1);
    await holder.query("rollback");
    await holder.end();
    await lotus.tick("events-relay");
    await eventually("the other event is settled", async () => (await outbox(lotus)).waiting === 0);
    expect([await notificationsOf(lotus, locked.id), await notificationsOf(lotus, free.id)]).toEqual([
      { all: 1, different: 1 },
      { all: 1, different: 1 },
    ]);
  });

  it("deletes the oldest dead letters of other producers beyond a number, a size and an age, and none from the outbox", async () => {
    const insert = (source: string, fromOutbox: boolean, age: string, bytes: number) =>
      lotus.database.query(
        `insert into events.dead_letters (event_key, subscriber, reason, attributes, body, from_outbox, moved_at)
         values (gen_random_uuid(), 's', $1, '{}', convert_to(repeat('x', $2), 'UTF8'), $3, now() - $4::interval)`,
        [source, bytes, fromOutbox, age],
      );
    const left = async (age: string, most: number, bytes: number) => {
      await lotus.database.query("select events.trim_dead_letters($1, $2, $3, $4)", [age, most, bytes, 100]);
      const { rows } = await lotus.database.query("select reason from events.dead_letters order by id");
      return rows.map(({ reason }) => reason).join(" ");
    };
    await insert("own", true, "1 year", 5_000);
    await insert("old", false, "91 days", 10);
    for (const name of ["a", "b", "c"]) await insert(name, false, "1 minute", 1_000);
    expect(await left("90 days", 10, 1_000_000)).toBe("own a b c");
    expect(await left("90 days", 10, 2_500)).toBe("own b c");
    expect(await left("90 days", 1, 1_000_000)).toBe("own c");
    await lotus.database.query("delete from events.dead_letters");
  });

  it("deletes published events that have no subscriber", async () => {
    await emitUnheard(lotus, 3);
    await lotus.tick("events-relay");
    expect(await outbox(lotus)).toEqual({ waiting: 0, attempts: 0 });
  });

  it("deletes all old idempotency keys, and no others", async () => {
    await lotus.database.query(
      `insert into events.idempotency_keys (service, user_id, key, fingerprint, created_at)
       select 'billing', gen_random_uuid(), 'a', 'b', now() - age * interval '1 day' from generate_series(1, 11_000), (values (6.9), (7.1)) ages (age)`,
    );
    await lotus.tick("events-relay");
    const { rows } = await lotus.database.query(
      "select count(*)::int as all, min(created_at) > now() - interval '7 days' as young from events.idempotency_keys",
    );
    expect(rows).toEqual([{ all: 11_000, young: true }]);
  });

  it("deletes all notifications older than two years, and no others", async () => {
    await lotus.database.query(
      `insert into notification.notifications (id, user_id, email, message, created_at)
       select gen_random_uuid(), gen_random_uuid(), 'a@example.com', 'aged', now() - age * interval '1 day'
       from generate_series(1, 5_100), (values (729.9), (730.1)) ages (age)`,
    );
    await lotus.tick("events-relay");
    const { rows } = await lotus.database.query(
      `select count(*)::int as all, min(created_at) > now() - interval '730 days' as young
       from notification.notifications where message = 'aged'`,
    );
    expect(rows).toEqual([{ all: 5_100, young: true }]);
    await lotus.database.query("delete from notification.notifications where message = 'aged'");
  });

  it("deletes all surplus dead letters, a bounded number in each statement", async () => {
    await lotus.database.query(
      `insert into events.dead_letters (event_key, subscriber, reason, attributes, moved_at)
       select gen_random_uuid(), 's', 'r', '{}', now() - age * interval '1 day'
       from generate_series(1, 2_100), (values (89.9), (90.1)) ages (age)`,
    );
    const { rows } = await lotus.database.query(
      "select events.trim_dead_letters('90 days', 10000, 1000000, 7) as deleted",
    );
    expect(rows).toEqual([{ deleted: 7 }]);
    await lotus.tick("events-relay");
    const { rowCount } = await lotus.database.query("select from events.dead_letters where reason = 'r'");
    expect(rowCount).toBe(2_100);
    await lotus.database.query("delete from events.dead_letters");
  });

  refusesWhatIsTooLarge(() => lotus);
});

describe("the relay, before a sink that refuses one topic,", () => {
  let lotus: TestLotus;
  beforeAll(async () => {
    lotus = await startTestLotus({ scheduled: false });
  });
  afterAll(() => lotus.stop());

  it("publishes the events of all other topics of the same batch", async () => {
    const sink = await startSink(({ headers }, response) => {
      response.writeHead(headers["lotus-topic"] === "missing" ? 404 : 204).end();
    });
    const relay = fork(bundleOf("events-relay"), [], {
      env: { ...lotus.manifests.functions.get("events-relay"), RUN_SECRET_FILE: "", K_SINK: sink.url, PORT: "0" },
      execArgv: [],
      stdio: ["ignore", "pipe", "inherit", "ipc"],
    });
    try {
      let output = "";
      relay.stdout?.on("data", (chunk: Buffer) => (output += chunk));
      const [{ port }] = (await once(relay, "message")) as [{ port: number }];
      // The missing topic is the first and the last of the batch.
      for (const topic of ["missing", "first", "second", "first", "missing"])
        await lotus.database.query("select events.emit($1, 1, 'test', gen_random_uuid(), null, '{}')", [topic]);
      await makeOverdue(lotus.database);
      const tick = { "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/ping", "ce-type": "ping" };
      const { status } = await call({ url: `http://127.0.0.1:${port}` }, "POST /", { headers: tick, body: {} });
      expect(status).toBe(204);
      const { rows } = await lotus.database.query("select topic, attempts from events.outbox");
      expect(rows).toEqual([
        { topic: "missing", attempts: 0 },
        { topic: "missing", attempts: 0 },
      ]);
      expect(sink.taken.map(({ headers }) => headers["lotus-topic"]).sort()).toEqual([
        "first",
        "first",
        "missing",
        "missing",
        "second",
      ]);
      const lines = await eventually("the relay has written its lines", () => {
        const whole = output
          .split("\n")
          .slice(0, -1)
          .map((line) => JSON.parse(line) as Line);
        return whole.some(({ message }) => message === "published overdue events") && whole;
      });
      expect(lines).toContainEqual(expect.objectContaining({ message: NOT_PUBLISHED, topic: "missing", count: 2 }));
      expect(lines).toContainEqual(expect.objectContaining({ message: "published overdue events", count: 3 }));
    } finally {
      const ended = once(relay, "exit");
      relay.kill();
      await ended;
      await sink.stop();
      await lotus.database.query("delete from events.outbox");
    }
  });
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
    await Promise.all([lotus.tick("events-relay"), lotus.tick("events-relay")]);
    expect(await endOf(kafka.bootstrap, "notification-requested")).toBe(before + 600);
    await settled(lotus);
  });

  it("killed in the middle, or refused by a broker that is down, leaves its batch to the next run", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    kafka.kill(0);
    await leaveInOutbox(lotus.database, user.id, numbered(700));
    const ticked = lotus.tick("events-relay");
    await eventually("a batch is claimed", async () => (await outbox(lotus)).attempts === 1);
    const child = lotus.functions.get("events-relay")?.running?.child;
    child?.kill("SIGKILL");
    await ticked;
    await makeOverdue(lotus.database);
    const before = await outbox(lotus);
    await lotus.tick("events-relay");
    const failed = await heard(lotus, NOT_PUBLISHED);
    expect(failed).toMatchObject([{ level: "error", count: 500, reason: expect.stringContaining("ECONNREFUSED") }]);
    expect(await outbox(lotus)).toEqual(before);
    await kafka.restart(0);
    await lotus.tick("events-relay");
    await settled(lotus);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 700, different: 700 });
  });

  it("publishes other topics while one topic is missing, and the events of that topic when it exists", async () => {
    const user = await newUser(lotus);
    await settled(lotus);
    await emitUnheard(lotus, 600);
    await leaveInOutbox(lotus.database, user.id, numbered(20));
    await lotus.tick("events-relay");
    await eventually("the others are settled", async () => (await outbox(lotus)).waiting === 600);
    expect(await notificationsOf(lotus, user.id)).toEqual({ all: 20, different: 20 });
    expect(await outbox(lotus)).toEqual({ waiting: 600, attempts: 0 });
    const failed = await heard(lotus, NOT_PUBLISHED, "unheard");
    expect(failed.at(-1)).toMatchObject({ reason: expect.stringContaining("topic") });
    await makeTopic(kafka.bootstrap, "unheard", 1);
    await lotus.tick("events-relay");
    expect(await outbox(lotus)).toEqual({ waiting: 0, attempts: 0 });
    expect(await endOf(kafka.bootstrap, "unheard")).toBe(600);
  });
});
