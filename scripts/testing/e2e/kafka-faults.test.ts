import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { verifyLedger } from "../../database/verify-ledger.ts";
import type { Kafka } from "../../kafka/cluster.ts";
import { createTopics } from "../../kafka/topics.ts";
import { PROGRAM } from "../../project/paths.ts";
import { runKafkaSource } from "../../sources/kafka-source.ts";
import { canStartKafka, endOf, leaveInOutbox, startTestKafka } from "../kafka.ts";
import { eventually, makeOverdue, newUser, settled, startTestLotus, type TestLotus, type TestUser } from "../lotus.ts";
import { memoryPeakMebibytes } from "../process.ts";

const TOPIC = "notification-requested";
const PRICE = 10;
const AT_ONCE = 20;
/** A process keeps a thousand events in memory (settings.ts). After these payments the heap of V8 has its final size. */
const PAYMENTS_THAT_FILL = 7_000;
const PAYMENTS_OF_OUTAGE = 14_000;
/** Limits the growth between these two numbers of payments. */
const MEMORY_GROWTH_MEBIBYTES_MAX = 20;
/** The memory limit of a pod: see knative/functions/. */
const MEMORY_MEBIBYTES_MAX = 192;
/** Publishing the waiting events after an outage takes long on a busy machine. */
const SETTLED_MILLISECONDS_MAX = 120_000;
const FAULT_MILLISECONDS_MAX = 300_000;

/** Pays several times, partly in parallel. Every payment must receive 200. */
async function pay(user: TestUser, times: number): Promise<void> {
  const payer = async (_: unknown, index: number) => {
    for (let done = index; done < times; done += AT_ONCE) {
      expect((await user.call("POST /order/pay?idSubscription=1")).status).toBe(200);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, payer));
}

/** Expects one charge, one order and one notification for each payment, and no others. */
async function expectEachOnce(lotus: TestLotus, user: TestUser, payments: number): Promise<void> {
  const { rows } = await lotus.database.query(
    `select (select count(*)::int from billing.transfers where debit_account = $1 and kind = 'charge') as charges,
      (select count(*)::int from "order".orders where user_id = $1 and status = 'paid') as orders,
      count(*)::int as notifications, count(distinct message)::int as different,
      (select count(*)::int from events.dead_letters) as "deadLetters"
     from notification.notifications where user_id = $1 and message like '%pay for order%'`,
    [user.id],
  );
  const all = { charges: payments, orders: payments, notifications: payments, different: payments };
  expect(rows).toEqual([{ ...all, deadLetters: 0 }]);
  expect(await verifyLedger(lotus.database)).toBeUndefined();
}

/** Returns the rows of all tables. */
async function dump({ database }: TestLotus): Promise<Record<string, unknown>> {
  const { rows: tables } = await database.query<{ name: string }>(
    `select format('%I.%I', schemaname, tablename) as name from pg_tables
     where schemaname in ('events', 'profile', 'billing', 'order', 'notification') order by 1`,
  );
  const contents: Record<string, unknown> = {};
  for (const { name } of tables) {
    const { rows } = await database.query(
      `select coalesce(jsonb_agg(t order by t::text), '[]') as rows from ${name} t`,
    );
    contents[name] = rows[0].rows;
  }
  return contents;
}

describe.skipIf(!canStartKafka)("Lotus on a Kafka that fails", () => {
  let kafka: Kafka;
  let lotus: TestLotus;
  let source: ChildProcess | undefined;

  /** The local KafkaSource as a separate process, which the test can kill. */
  function startSource(): ChildProcess {
    const flags = ["--brokers", kafka.bootstrap.join(","), "--sink-template", `${lotus.insideUrl}/{name}`];
    return spawn(process.execPath, [PROGRAM, "kafka-source", ...flags], { stdio: "ignore" });
  }
  async function endSource(signal: NodeJS.Signals): Promise<void> {
    source?.kill(signal);
    if (source?.exitCode === null && source.signalCode === null) await once(source, "exit");
  }
  const childOf = (name: string) => lotus.functions.get(name)?.running?.child;
  const memoryOf = (name: string) => memoryPeakMebibytes(childOf(name)?.pid ?? 0);
  const settledInTime = () => settled(lotus, SETTLED_MILLISECONDS_MAX);
  const stored = async (userId: string) => {
    const { rows } = await lotus.database.query(
      "select count(*)::int as count from notification.notifications where user_id = $1",
      [userId],
    );
    return rows[0].count as number;
  };

  beforeAll(async () => {
    kafka = await startTestKafka();
    lotus = await startTestLotus({ kafka, deliver: false });
    source = startSource();
  });
  afterAll(async () => {
    await endSource("SIGTERM");
    await lotus?.stop();
    await kafka?.stop();
  });

  it(
    "answers every payment while brokers stop and start, in bounded memory, and then settles each one once",
    async () => {
      const user = await newUser(lotus, 150_000);
      await pay(user, 100);
      await settledInTime();
      kafka.kill(0);
      await pay(user, PAYMENTS_THAT_FILL);
      const full = await memoryOf("order-pay");
      await pay(user, PAYMENTS_OF_OUTAGE - PAYMENTS_THAT_FILL);
      const peak = await memoryOf("order-pay");
      // The function is killed between commit and publication, so only the outbox contains its events.
      childOf("order-pay")?.kill("SIGKILL");
      await eventually("the process has ended", () => childOf("order-pay") === undefined);
      await Promise.all([kafka.restart(0), pay(user, 40)]);
      const paying = pay(user, 40);
      kafka.kill(0);
      await paying;
      await kafka.restart(0);
      await makeOverdue(lotus.database);
      await lotus.tick();
      await settledInTime();
      await expectEachOnce(lotus, user, 100 + PAYMENTS_OF_OUTAGE + 80);
      expect(peak - full).toBeLessThan(MEMORY_GROWTH_MEBIBYTES_MAX);
      expect(peak).toBeLessThan(MEMORY_MEBIBYTES_MAX);
      expect(lotus.lines.get("order-pay")?.some((line) => line.includes("the publish queue is full"))).toBe(true);
    },
    FAULT_MILLISECONDS_MAX,
  );

  it(
    "settles events that were in the brokers when their data was erased",
    async () => {
      const user = await newUser(lotus, 1_000);
      await settledInTime();
      await endSource("SIGTERM");
      const before = await endOf(kafka.bootstrap, TOPIC);
      await pay(user, 30);
      await eventually("they are published", async () => (await endOf(kafka.bootstrap, TOPIC)) >= before + 30);
      await kafka.erase();
      await createTopics(kafka.bootstrap);
      source = startSource();
      await makeOverdue(lotus.database);
      await lotus.tick();
      await settledInTime();
      await expectEachOnce(lotus, user, 30);
    },
    FAULT_MILLISECONDS_MAX,
  );

  it(
    "settles events in flight after their function and their source were killed",
    async () => {
      const user = await newUser(lotus);
      await settledInTime();
      const messages = Array.from({ length: 2_000 }, (_, index) => `number ${index}`);
      await leaveInOutbox(lotus.database, user.id, messages);
      await lotus.tick();
      for (const least of [1, 150, 300]) {
        await eventually("some are stored", async () => (await stored(user.id)) > least);
        childOf("notification-store")?.kill("SIGKILL");
      }
      await endSource("SIGKILL");
      expect(await stored(user.id)).toBeLessThan(messages.length);
      source = startSource();
      await settledInTime();
      const { rows } = await lotus.database.query(
        "select message from notification.notifications where user_id = $1 and message like 'number %'",
        [user.id],
      );
      expect(rows.map(({ message }) => message).sort()).toEqual(messages.sort());
    },
    FAULT_MILLISECONDS_MAX,
  );

  it("gives an event that is delivered several times at the same time one effect", async () => {
    const user = await newUser(lotus, 100);
    await settledInTime();
    const id = randomUUID();
    const deliver = async () => {
      const answer = await fetch(`${lotus.insideUrl}/notification-store`, {
        method: "POST",
        headers: {
          "content-type": "application/json",
          "ce-specversion": "1.0",
          "ce-id": id,
          "ce-source": "/shop",
          "ce-type": "sold",
        },
        body: JSON.stringify({ kind: "message", userId: user.id, recipient: user.email, message: "only once" }),
      });
      return answer.status < 300;
    };
    expect(await Promise.all(Array.from({ length: 30 }, deliver))).not.toContain(false);
    const { body } = await user.call("GET /notification");
    const told = body.filter(({ message }: { message: string }) => message === "only once");
    expect(told).toHaveLength(1);
  });

  it(
    "publishes a full outbox in bounded memory, and meanwhile shows the notification of a new payment at once",
    async () => {
      const [user, other] = [await newUser(lotus, 100), await newUser(lotus)];
      await settledInTime();
      await leaveInOutbox(
        lotus.database,
        other.id,
        Array.from({ length: 3_000 }, (_, index) => `number ${index}`),
      );
      const ticked = lotus.tick();
      await eventually("the first are stored", async () => (await stored(other.id)) > 1);
      await user.call("POST /order/pay?idSubscription=1");
      const { body } = await user.call("GET /notification");
      expect(await stored(other.id)).toBeLessThan(3_000);
      expect(body[0].message).toContain(`Order cost amount ${PRICE}. You balance after 90`);
      await ticked;
      await settledInTime();
      expect(await stored(other.id)).toBe(3_001);
      for (const name of ["events-relay", "notification-store"]) {
        expect(await memoryOf(name), name).toBeLessThan(MEMORY_MEBIBYTES_MAX);
      }
    },
    FAULT_MILLISECONDS_MAX,
  );

  it(
    "changes no row when all records of the topics are delivered again",
    async () => {
      await settledInTime();
      const before = await dump(lotus);
      // A topic without a source, such as ledger-sealed, delivers nothing here.
      const topics = lotus.manifests.kafkaSources.flatMap(({ spec }) => spec.topics);
      const ends = await Promise.all(topics.map((topic) => endOf(kafka.bootstrap, topic)));
      const records = ends.reduce((sum, end) => sum + end, 0);
      expect(records).toBeGreaterThan(3_500);
      let delivered = 0;
      const readers = lotus.manifests.kafkaSources.map((one) =>
        runKafkaSource(
          { ...one, spec: { ...one.spec, consumerGroup: randomUUID() } },
          {
            brokers: kafka.bootstrap,
            resolve: (name) => `${lotus.insideUrl}/${name}`,
            onEvent: ({ kind }) => void (kind === "delivered" && delivered++),
          },
        ),
      );
      await eventually("all are delivered", () => delivered >= records, SETTLED_MILLISECONDS_MAX);
      await Promise.all(readers.map((reader) => reader.stop()));
      expect(await dump(lotus)).toEqual(before);
    },
    FAULT_MILLISECONDS_MAX,
  );
});
