/** The time from a payment's answer until its notification is stored, beside a record of raw kafkajs on the same broker. */
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { kafkaClient } from "#kernel/kafka";
import { makeTopic } from "../testing/kafka.ts";
import { newUser, settled } from "../testing/lotus.ts";
import { processorMilliseconds } from "../testing/process.ts";
import type { BenchOptions } from "./flags.ts";
import { type BenchLotus, processOf, withKafkaLotus } from "./kafka-lotus.ts";
import type { Figure } from "./report.ts";

export const about =
  "a payment's answer until its notification is stored, beside raw kafkajs, and the CPU of an idle function";

const RAW = "raw kafkajs: produced until consumed";
const STORED = "answer until the trigger has stored the notification";
const WARM_UP_ROUNDS = 20;
const ROUNDS_FACTOR = 30;
const RATIO_MAX = 2;
const IDLE_CPU_MAX = 2;
/** A function keeps its connection to Kafka for ten seconds after its last request; V8 then frees memory once. */
const IDLE_AFTER_MILLISECONDS = 20_000;
const IDLE_SECONDS = 20;

/** Produces a record and waits until it is consumed, by clients of this process; milliseconds. */
async function rawRoundTrip(lotus: BenchLotus): Promise<{ measure(): Promise<number>; stop(): Promise<void> }> {
  const topic = `raw-${randomUUID()}`;
  await makeTopic(lotus.kafka.bootstrap, topic, 6);
  const { Partitioners } = await import("kafkajs");
  const client = await kafkaClient(lotus.kafka.bootstrap, () => undefined);
  const producer = client.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  const consumer = client.consumer({ groupId: randomUUID(), maxWaitTimeInMs: 500, retry: { retries: 8 } });
  let consumed: () => void = () => undefined;
  await producer.connect();
  await consumer.connect();
  await consumer.subscribe({ topic, fromBeginning: true });
  const joined = new Promise((resolve) => consumer.on(consumer.events.GROUP_JOIN, resolve));
  await consumer.run({ eachMessage: async () => consumed() });
  await joined;
  return {
    async measure() {
      const began = performance.now();
      const arrived = new Promise<void>((resolve) => {
        consumed = resolve;
      });
      await producer.send({ topic, acks: -1, messages: [{ key: randomUUID(), value: "x".repeat(200) }] });
      await arrived;
      return performance.now() - began;
    },
    async stop() {
      await consumer.disconnect();
      await producer.disconnect();
    },
  };
}

/** Returns the CPU time, in milliseconds, that an idle process uses in some seconds. */
async function idleMilliseconds(pid: number, seconds: number): Promise<number> {
  const before = await processorMilliseconds(pid);
  await delay(seconds * 1000);
  return (await processorMilliseconds(pid)) - before;
}

export default async function events({ rounds }: BenchOptions): Promise<Figure[]> {
  return withKafkaLotus(async (lotus) => {
    const { database } = lotus;
    const user = await newUser(lotus, 1_000_000);
    // A separate connection reads from the database when a notification was committed.
    await database.query(`
      create function notification.tell() returns trigger language plpgsql as $$ begin notify stored; return null; end $$;
      create trigger tell after insert on notification.notifications for each row execute function notification.tell();
      listen stored`);
    const pay = async () => {
      const { status } = await user.call("POST /order/pay?idSubscription=1");
      if (status !== 200) throw new Error(`A payment was answered ${status}.`);
      return performance.now();
    };
    const raw = await rawRoundTrip(lotus);
    const measures = {
      [RAW]: () => raw.measure(),
      [STORED]: async () => {
        const stored = once(database, "notification");
        const answered = await pay();
        await stored;
        return Math.max(0, performance.now() - answered);
      },
      "GET /notification": async () => {
        const began = performance.now();
        await user.call("GET /notification?limit=1");
        return performance.now() - began;
      },
      "answer until GET /notification shows the notification": async () => {
        const stored = once(database, "notification");
        const answered = await pay();
        await user.call("GET /notification?limit=1");
        const milliseconds = performance.now() - answered;
        await stored;
        return milliseconds;
      },
    };
    const times = new Map<string, number[]>(Object.keys(measures).map((name) => [name, []]));
    for (let round = -WARM_UP_ROUNDS; round < rounds * ROUNDS_FACTOR; round++) {
      for (const [name, measure] of Object.entries(measures)) {
        const milliseconds = await measure();
        if (round >= 0) times.get(name)?.push(milliseconds);
      }
    }
    await raw.stop();
    const pid = processOf(lotus, "order-pay");
    await pay();
    await settled(lotus);
    await delay(IDLE_AFTER_MILLISECONDS);
    const idle = (await idleMilliseconds(pid, IDLE_SECONDS)) / IDLE_SECONDS;
    const floor = times.get(RAW) ?? [];
    const figures: Figure[] = [...times].map(([what, lotus]) => ({
      what: `${what}, ms`,
      lotus,
      digits: 1,
      ...(what !== RAW && { floor }),
      ...(what === STORED && { targets: [{ of: "floor", max: RATIO_MAX }] }),
    }));
    return [
      ...figures,
      {
        what: "CPU of an idle order-pay, ms/s",
        lotus: [idle],
        digits: 1,
        targets: [{ of: "lotus", max: IDLE_CPU_MAX }],
      },
    ];
  });
}
