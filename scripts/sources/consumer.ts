/** The consumer behind a KafkaSource: it has many records in flight and commits offsets only past settled records. */
import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import type { Consumer, EachBatchPayload, KafkaMessage } from "kafkajs";
import { kafkaClient } from "#kernel/kafka";
import { Slots } from "../process/concurrency.ts";
import { type KafkaRecord, toMessage } from "./cloud-event.ts";
import {
  type Delivered,
  deliver,
  deliverUnreadable,
  type KafkaSource,
  type Message,
  type Resolve,
} from "./delivery.ts";
import { Progress } from "./offsets.ts";
import { readPastUndecodable, undecodableReason } from "./undecodable.ts";

/** The real data plane polls as many records at once. A function serves at most this many requests of one source at a time. */
const RECORDS_IN_FLIGHT_MAX = 50;
const COMMIT_MILLISECONDS = 500;
/** A group waits this long for a member that was killed; brokers take no less. */
const SESSION_MILLISECONDS = 6_000;
const HEARTBEAT_MILLISECONDS = 1_000;
const REBALANCE_MILLISECONDS = 10_000;
/** A fetch without records lasts this long, and a stop waits for it. */
const FETCH_WAIT_MILLISECONDS = 500;
const FETCH_PARTITION_BYTES_MAX = 512 * 1024;
const PARTITIONS_AT_ONCE_MAX = 16;
/** The pause before a new consumer. It doubles while consumers end right after they have joined. */
const RESTART_MILLISECONDS_MIN = 500;
const RESTART_MILLISECONDS_MAX = 8_000;
/** A consumer that runs this long after it has joined has recovered. */
const RECOVERED_MILLISECONDS = 3_000;
/** The pause between two reports of the same error. */
const REPEATED_TROUBLE_MILLISECONDS = 60_000;
/** Limits the wait for requests in flight when the source stops. */
const STOP_MILLISECONDS_MAX = 5_000;
const RETRIES = { retries: 8, initialRetryTime: 100, maxRetryTime: 1_000, factor: 0.2, multiplier: 2 };

const GROUP_COMES_UP = ["GROUP_COORDINATOR_NOT_AVAILABLE", "GROUP_LOAD_IN_PROGRESS"];

/** A report of a source. */
export type SourceEvent =
  | { readonly kind: "joined"; readonly partitions: number }
  | (Delivered & { readonly milliseconds: number } & Position)
  /** All records before this offset are settled. */
  | ({ readonly kind: "committed" } & Position)
  | { readonly kind: "trouble"; readonly message: string };

interface Position {
  readonly topic: string;
  readonly partition: number;
  readonly offset: string;
}

export interface RunningSource {
  /** Resolves when the source has joined its group for the first time. */
  readonly joined: Promise<void>;
  /** Waits for requests in flight, commits the settled offsets, and leaves the group. Kafka delivers the other records again. */
  stop(): Promise<void>;
}

export interface SourceOptions {
  /** host:port of the brokers. The YAML names the brokers of the cluster. */
  readonly brokers: readonly string[];
  /** Returns the address of a function. */
  readonly resolve: Resolve;
  readonly onEvent?: (event: SourceEvent) => void;
}

/** Returns an event of a source as one line for people, with names and units. */
export function describe(event: SourceEvent): string {
  if (event.kind === "joined") return `joined its consumer group, with ${event.partitions} partitions`;
  if (event.kind === "trouble") return event.message;
  const position = `topic=${event.topic} partition=${event.partition} offset=${event.offset}`;
  if (event.kind === "committed") return `committed ${position}`;
  const took = `${event.kind} ${position} ${Math.round(event.milliseconds)} ms`;
  return event.kind === "delivered" ? took : `${took} reason="${event.reason}"`;
}

/** Returns an event without headers for a record that toMessage could not convert. */
function bareMessage({ topic, partition, offset, value }: KafkaRecord, name: string, namespace: string): Message {
  return {
    headers: {
      "ce-specversion": "1.0",
      "ce-id": `partition:${partition}/offset:${offset}`,
      "ce-source": `/apis/v1/namespaces/${namespace}/kafkasources/${name}#${topic}`,
      "ce-type": "dev.knative.kafka.event",
      "ce-time": new Date().toISOString(),
      "ce-knativekafkapartition": String(partition),
      "ce-knativekafkaoffset": offset,
    },
    body: value ?? undefined,
  };
}

/** Runs one source until it is stopped. */
export class KafkaConsumer implements RunningSource {
  readonly joined: Promise<void>;
  readonly #source: KafkaSource;
  readonly #brokers: readonly string[];
  readonly #resolve: Resolve;
  readonly #emit: (event: SourceEvent) => void;
  readonly #stop = new AbortController();
  readonly #slots = new Slots(RECORDS_IN_FLIGHT_MAX);
  readonly #stopped: Promise<void>;
  readonly #ended: Promise<void>;
  #consumer: Consumer | undefined;
  #hasJoined: () => void = () => undefined;
  /** By topic and partition. Contains the present assignment only: another member commits the other partitions. */
  #progress = new Map<string, Progress>();
  #commitTimer: NodeJS.Timeout | undefined;
  #trouble: { readonly message: string; toldAt: number } | undefined;
  #restartMilliseconds = RESTART_MILLISECONDS_MIN;
  #recovery: NodeJS.Timeout | undefined;

  constructor(source: KafkaSource, { brokers, resolve, onEvent }: SourceOptions) {
    this.#source = source;
    this.#brokers = brokers;
    this.#resolve = resolve;
    this.#emit = onEvent ?? (() => undefined);
    this.joined = new Promise((joined) => {
      this.#hasJoined = joined;
    });
    // Each record in flight may wait for its next attempt, and so may the consumer itself; Node warns of more than ten.
    setMaxListeners(RECORDS_IN_FLIGHT_MAX + 2, this.#stop.signal);
    this.#stopped = new Promise((resolve) => {
      this.#stop.signal.addEventListener("abort", () => resolve(), { once: true });
    });
    this.#ended = this.#run();
  }

  /** Runs one consumer after the other: kafkajs does not restart after some errors. */
  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        await this.#consume();
      } catch (error) {
        this.#report(error as Error & { type?: string });
      }
      await delay(this.#restartMilliseconds, undefined, { signal: this.#stop.signal }).catch(() => undefined);
    }
  }

  /** Reports the error that ended a consumer, at most once a minute. Omits the first seconds of a group on new brokers. */
  #report({ message, type }: Error & { type?: string }): void {
    if (GROUP_COMES_UP.includes(type ?? "")) return;
    const now = performance.now();
    if (this.#trouble?.message === message && now - this.#trouble.toldAt < REPEATED_TROUBLE_MILLISECONDS) return;
    this.#trouble = { message, toldAt: now };
    this.#emit({ kind: "trouble", message: `${message}. The source tries again until it succeeds.` });
  }

  /** Reports that the consumer works, and forgets earlier errors. */
  #recover(partitions: number): void {
    this.#trouble = undefined;
    this.#restartMilliseconds = RESTART_MILLISECONDS_MIN;
    this.#emit({ kind: "joined", partitions });
  }

  /** Consumes until the source is stopped. @throws what ended the consumer */
  async #consume(): Promise<void> {
    const { consumerGroup: groupId, topics } = this.#source.spec;
    // The error that ends a consumer is reported; kafkajs recovers from what it logs besides.
    const kafka = await kafkaClient(this.#brokers, () => undefined);
    await readPastUndecodable();
    const consumer = kafka.consumer({
      groupId,
      sessionTimeout: SESSION_MILLISECONDS,
      heartbeatInterval: HEARTBEAT_MILLISECONDS,
      rebalanceTimeout: REBALANCE_MILLISECONDS,
      maxWaitTimeInMs: FETCH_WAIT_MILLISECONDS,
      maxBytesPerPartition: FETCH_PARTITION_BYTES_MAX,
      allowAutoTopicCreation: false,
      retry: { ...RETRIES, restartOnFailure: async () => false },
    });
    const crashed = new Promise<never>((_, reject) => {
      consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    });
    let joined = false;
    consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
      joined = true;
      const partitions = this.#keep(payload.memberAssignment);
      clearTimeout(this.#recovery);
      // The consumer may end after each join.
      if (this.#trouble === undefined) this.#recover(partitions);
      else this.#recovery = setTimeout(() => this.#recover(partitions), RECOVERED_MILLISECONDS).unref();
      this.#hasJoined();
    });
    this.#consumer = consumer;
    try {
      const begun = (async () => {
        await consumer.connect();
        await consumer.subscribe({ topics, fromBeginning: true });
        await consumer.run({
          autoCommit: false,
          eachBatchAutoResolve: false,
          partitionsConsumedConcurrently: PARTITIONS_AT_ONCE_MAX,
          eachBatch: (payload) => this.#take(payload),
        });
      })();
      await Promise.race([begun, crashed, this.#stopped]);
      await Promise.race([crashed, this.#stopped]);
      if (joined) await this.#windUp(consumer);
    } catch (error) {
      if (joined) this.#restartMilliseconds = Math.min(2 * this.#restartMilliseconds, RESTART_MILLISECONDS_MAX);
      throw error;
    } finally {
      clearTimeout(this.#recovery);
      clearTimeout(this.#commitTimer);
      this.#commitTimer = undefined;
      await consumer.disconnect();
    }
  }

  /** Forgets the partitions that another member has now. The others keep their records in flight, which hold back their offsets. */
  #keep(assignment: Readonly<Record<string, readonly number[]>>): number {
    const ours = Object.entries(assignment).flatMap(([topic, partitions]) =>
      partitions.map((partition) => `${topic} ${partition}`),
    );
    for (const [key, progress] of this.#progress) {
      progress.committed = 0n;
      if (!ours.includes(key)) this.#progress.delete(key);
    }
    return ours.length;
  }

  /** Begins the delivery of a batch's records while slots are free. A heartbeat keeps the member alive while it waits for a slot. */
  async #take({ batch, resolveOffset, heartbeat, isRunning, isStale }: EachBatchPayload): Promise<void> {
    const { topic, partition, messages } = batch;
    const key = `${topic} ${partition}`;
    const progress = this.#progress.get(key) ?? new Progress(topic, partition);
    this.#progress.set(key, progress);
    for (const message of messages) {
      while (!this.#slots.take()) {
        await heartbeat();
        await this.#slots.released(HEARTBEAT_MILLISECONDS);
      }
      if (!isRunning() || isStale() || this.#stop.signal.aborted || this.#progress.get(key) !== progress) {
        this.#slots.release();
        return;
      }
      progress.take(BigInt(message.offset));
      resolveOffset(message.offset);
      void this.#settle(progress, message);
    }
    await heartbeat();
  }

  async #settle(progress: Progress, message: KafkaMessage): Promise<void> {
    const { name, namespace = "default" } = this.#source.metadata;
    const { topic, partition } = progress;
    const { offset } = message;
    const record = { headers: {}, ...message, topic, partition };
    const began = performance.now();
    const { signal } = this.#stop;
    try {
      const delivered = await this.#deliver(record, name, namespace);
      progress.settle(BigInt(offset));
      this.#emit({ ...delivered, topic, partition, offset, milliseconds: performance.now() - began });
      this.#commitTimer ??= setTimeout(() => void this.#commit(), COMMIT_MILLISECONDS);
    } catch (error) {
      if (!signal.aborted) {
        const what = `the record ${topic} ${partition}/${offset} was not sent: ${(error as Error).message}`;
        this.#emit({ kind: "trouble", message: what });
      }
    } finally {
      this.#slots.release();
    }
  }

  #deliver(record: KafkaRecord, name: string, namespace: string): Promise<Delivered> {
    const { spec } = this.#source;
    const refuse = (why: string) => {
      const reason = `the record cannot become an event: ${why}`;
      const bare = bareMessage(record, name, namespace);
      return deliverUnreadable(bare, reason, spec, this.#resolve, this.#stop.signal);
    };
    const undecodable = undecodableReason(record.headers);
    if (undecodable !== undefined) return refuse(undecodable);
    let message: Message;
    try {
      message = toMessage(record, { name, namespace });
    } catch (error) {
      return refuse((error as Error).message);
    }
    return deliver(message, spec, this.#resolve, this.#stop.signal);
  }

  async #commit(): Promise<void> {
    this.#commitTimer = undefined;
    const due = [...this.#progress.values()].filter(({ position, committed }) => position > committed);
    if (due.length === 0) return;
    const offsets = due.map(({ topic, partition, position }) => ({ topic, partition, offset: String(position) }));
    try {
      await this.#consumer?.commitOffsets(offsets);
      for (const [index, progress] of due.entries()) progress.committed = BigInt(offsets[index]?.offset ?? 0);
      for (const offset of offsets) this.#emit({ kind: "committed", ...offset });
    } catch (error) {
      const message = `offsets were not committed, so records may come again: ${(error as Error).message}`;
      this.#emit({ kind: "trouble", message });
    }
  }

  async #windUp(consumer: Consumer): Promise<void> {
    consumer.pause(this.#source.spec.topics.map((topic) => ({ topic })));
    const until = performance.now() + STOP_MILLISECONDS_MAX;
    while (this.#slots.taken > 0 && performance.now() < until) await this.#slots.released(until - performance.now());
    clearTimeout(this.#commitTimer);
    await this.#commit();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#ended;
  }
}
