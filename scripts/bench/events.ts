/** npm run bench events -- [--rounds 200] */
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import { kafkaClient } from "#kernel/kafka";
import { table } from "../cli/output.ts";
import { makeTopic } from "../testing/kafka.ts";
import { newUser, settled } from "../testing/lotus.ts";
import { processorMilliseconds } from "../testing/process.ts";
import { readFlags } from "./flags.ts";
import { type BenchLotus, processOf, withKafkaLotus } from "./kafka-lotus.ts";
import { median, quantile } from "./statistics.ts";

export const about =
  "a payment's answer until its notification is there, beside raw kafkajs on the same broker: p50 at most 3 times as long";

const WARM_UP_ROUNDS = 20;
const RATIO_MAX = 3;
const IDLE_CPU_MAX = 2;
/**
 * What a function does after its last request, until Knative takes its pod after a minute: it keeps its connection to Kafka for ten
 * seconds, V8 gives memory back once (some 40 ms of work for some 18 MiB: `node --trace-gc`), then nothing.
 */
const IDLE_SECONDS = { "connected to Kafka": 8, "disconnects; V8 gives memory back, once": 12, "from then on": 30 };

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

/** The processor time that a process uses in that time, while nothing is asked of it. */
async function idleMilliseconds(pid: number, seconds: number): Promise<number> {
  const before = await processorMilliseconds(pid);
  await delay(seconds * 1000);
  return (await processorMilliseconds(pid)) - before;
}

export default async function events(args: readonly string[]): Promise<void> {
  const { rounds } = readFlags(args, { rounds: 200 });
  await withKafkaLotus(async (lotus) => {
    const { database } = lotus;
    const user = await newUser(lotus, 1_000_000);
    // The database says when a notification has been committed, on a connection that waits for nothing else.
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
      "raw: produced and consumed": () => raw.measure(),
      "stored by the trigger (heard by LISTEN)": async () => {
        const stored = once(database, "notification");
        const answered = await pay();
        await stored;
        return Math.max(0, performance.now() - answered);
      },
      "a GET /notification alone": async () => {
        const began = performance.now();
        await user.call("GET /notification?limit=1");
        return performance.now() - began;
      },
      "shown by GET /notification (settled by the reader)": async () => {
        const stored = once(database, "notification");
        const answered = await pay();
        await user.call("GET /notification?limit=1");
        const milliseconds = performance.now() - answered;
        await stored;
        return milliseconds;
      },
    };
    const times = new Map<string, number[]>(Object.keys(measures).map((name) => [name, []]));
    for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
      for (const [name, measure] of Object.entries(measures)) {
        const milliseconds = await measure();
        if (round >= 0) times.get(name)?.push(milliseconds);
      }
    }
    await raw.stop();
    const floor = median(times.get("raw: produced and consumed") ?? []);
    const rows = [...times].map(([name, values]) => {
      const ratio = median(values) / floor;
      const cells = [median(values), quantile(values, 0.99), Math.min(...values), Math.max(...values)];
      const target = name.startsWith("s") ? ` (target ≤ ${RATIO_MAX})` : "";
      return [name, ...cells.map((cell) => cell.toFixed(1)), ratio.toFixed(2) + target];
    });
    console.log(table([[`${rounds} rounds, milliseconds`, "p50", "p99", "least", "most", "p50 / raw p50"], ...rows]));
    const pid = processOf(lotus, "order-pay");
    await pay();
    await settled(lotus);
    const idle: string[][] = [];
    const all = { milliseconds: 0, seconds: 0 };
    for (const [what, seconds] of Object.entries(IDLE_SECONDS)) {
      const milliseconds = await idleMilliseconds(pid, seconds);
      idle.push([`${what} (${seconds} s)`, (milliseconds / seconds).toFixed(1), ""]);
      all.milliseconds += milliseconds;
      all.seconds += seconds;
    }
    idle.push([`all of it (${all.seconds} s)`, (all.milliseconds / all.seconds).toFixed(1), `≤ ${IDLE_CPU_MAX}`]);
    console.log(table([["order-pay after a payment, CPU", "ms/s", "target"], ...idle]));
  });
}
