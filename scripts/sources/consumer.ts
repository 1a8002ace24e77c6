/** The consumer behind a KafkaSource: many records in flight, offsets committed only past settled ones. */
import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import type { Consumer, EachBatchPayload, KafkaMessage } from "kafkajs";
import { kafkaClient } from "#kernel/kafka";
import { toMessage } from "./cloud-event.ts";
import { deliver, type KafkaSource, type Resolve } from "./delivery.ts";
import { Progress, Slots } from "./offsets.ts";

/** As the real one: what it polls at once. One source never asks more of a function at a time. */
const RECORDS_IN_FLIGHT_MAX = 50;
const COMMIT_MILLISECONDS = 500;
/** A group waits this long for a member that was killed; brokers take no less. */
const SESSION_MILLISECONDS = 6_000;
const HEARTBEAT_MILLISECONDS = 1_000;
const REBALANCE_MILLISECONDS = 10_000;
/** A fetch answers at once when there is something; this is how long a stop can take. */
const FETCH_WAIT_MILLISECONDS = 500;
const FETCH_PARTITION_BYTES_MAX = 512 * 1024;
const PARTITIONS_AT_ONCE_MAX = 16;
const RESTART_MILLISECONDS = 500;
/** Requests that are on their way when the source is stopped may end for that long. */
const STOP_MILLISECONDS_MAX = 5_000;
const RETRIES = { retries: 8, initialRetryTime: 100, maxRetryTime: 1_000, factor: 0.2, multiplier: 2 };

const GROUP_COMES_UP = ["GROUP_COORDINATOR_NOT_AVAILABLE", "GROUP_LOAD_IN_PROGRESS"];

/** What a source tells of its work. */
export type SourceEvent =
  | { readonly kind: "joined"; readonly partitions: number }
  | ({ readonly kind: "delivered" | "dead-letter" | "lost"; readonly milliseconds: number } & Position)
  /** All before this offset is settled, and will not be delivered again. */
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
  /** Lets requests on their way end, commits what is settled, and leaves the group. The rest will be delivered again. */
  stop(): Promise<void>;
}

export interface SourceOptions {
  /** host:port of the brokers; those in the YAML are the cluster's. */
  readonly brokers: readonly string[];
  /** Where a function is. */
  readonly resolve: Resolve;
  readonly onEvent?: (event: SourceEvent) => void;
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
  /** By topic and partition, of the present assignment only: the others are not ours to commit. */
  #progress = new Map<string, Progress>();
  #commitTimer: NodeJS.Timeout | undefined;
  #lastReport: string | undefined;

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

  /** One consumer after the other: kafkajs's own restarts give up on some errors, and this way there is one way back. */
  async #run(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        await this.#consume();
      } catch (error) {
        this.#report(error as Error & { type?: string });
      }
      await delay(RESTART_MILLISECONDS, undefined, { signal: this.#stop.signal }).catch(() => undefined);
    }
  }

  /** Tells of what ended a consumer, once while it goes on; of a group's first seconds on new brokers, not at all. */
  #report({ message, type }: Error & { type?: string }): void {
    if (GROUP_COMES_UP.includes(type ?? "") || message === this.#lastReport) return;
    this.#lastReport = message;
    this.#emit({ kind: "trouble", message: `${message}; it is tried again and again` });
  }

  /** Consumes until the source is stopped. @throws what ended the consumer */
  async #consume(): Promise<void> {
    const { consumerGroup: groupId, topics } = this.#source.spec;
    // What ends the consumer is told by its error; what kafkajs says besides, it mends by itself.
    const kafka = await kafkaClient(this.#brokers, () => undefined);
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
      this.#lastReport = undefined;
      const partitions = this.#keep(payload.memberAssignment);
      this.#emit({ kind: "joined", partitions });
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
    } finally {
      clearTimeout(this.#commitTimer);
      this.#commitTimer = undefined;
      await consumer.disconnect();
    }
  }

  /** Forgets the partitions that are another's now. Those that stay keep what is in flight: it holds back their offsets. */
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

  /** Sends a batch's records on their way, as long as there is room, and keeps the member alive while there is none. */
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
    const began = performance.now();
    try {
      const request = toMessage({ headers: {}, ...message, topic, partition }, { name, namespace });
      const kind = await deliver(request, this.#source.spec, this.#resolve, this.#stop.signal);
      progress.settle(BigInt(offset));
      this.#emit({ kind, topic, partition, offset, milliseconds: performance.now() - began });
      this.#commitTimer ??= setTimeout(() => void this.#commit(), COMMIT_MILLISECONDS);
    } catch (error) {
      if (!this.#stop.signal.aborted) {
        const what = `the record ${topic} ${partition}/${offset} was not sent: ${(error as Error).message}`;
        this.#emit({ kind: "trouble", message: what });
      }
    } finally {
      this.#slots.release();
    }
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
