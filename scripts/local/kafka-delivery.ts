/** Delivers the events of Kafka to the functions of a local run. */
import { setTimeout as delay } from "node:timers/promises";
import { createTopicsWhenPossible } from "../kafka/topics.ts";
import type { KafkaSource, Resolve } from "../sources/delivery.ts";
import { describe, installed, type RunningSource, runKafkaSource } from "../sources/kafka-source.ts";

/** Limits the wait for the consumer groups. Brokers keep a member that was killed for 6 s. */
const JOIN_MILLISECONDS_MAX = 10_000;
/** The pause between two attempts to read the id of the installation. */
const INSTALLATION_MILLISECONDS = 2_000;

/** The brokers, the sources and the functions of a delivery. */
export interface DeliveryOptions {
  /** host:port of each broker. */
  readonly brokers: readonly string[];
  /** The beginning of every topic and consumer group. */
  readonly prefix: string;
  readonly sources: readonly KafkaSource[];
  /** Returns the id that ends the names of the consumer groups. It rejects while the database is unavailable. */
  installation(): Promise<string | undefined>;
  readonly resolve: Resolve;
  /** Receives news about a source, or about `kafka`. */
  tell(who: string, news: string): void;
}

/** The delivery of a local run. */
export interface Delivery {
  /** The sources that run, with the names that they have in this installation. */
  sources(): readonly KafkaSource[];
  /** Stops the sources, and waits for their requests in flight. */
  stop(): Promise<void>;
}

/**
 * Creates the topics and starts the sources. It waits until each source has joined its group, for at most JOIN_MILLISECONDS_MAX.
 * It continues in the background when the database or the brokers are unavailable, or when a group waits for a lost member.
 */
export async function deliverFromKafka(options: DeliveryOptions): Promise<Delivery> {
  const { brokers, prefix, resolve, tell } = options;
  const stopping = new AbortController();
  const { signal } = stopping;
  const topics = await createTopicsWhenPossible(brokers, prefix, (news) => tell("kafka", news));
  let sources: readonly KafkaSource[] = [];
  let running: readonly RunningSource[] = [];
  const readInstallation = async (): Promise<string | undefined> => {
    for (let told = ""; ; ) {
      try {
        return await options.installation();
      } catch (error) {
        const news = `The database does not answer: ${(error as Error).message}. The events wait until it does.`;
        if (news !== told) tell("kafka", news);
        told = news;
      }
      await delay(INSTALLATION_MILLISECONDS, undefined, { signal });
    }
  };
  const starting = (async () => {
    if (options.sources.length === 0) return;
    const installation = await readInstallation();
    if (signal.aborted) return;
    sources = options.sources.map((source) => installed(source, prefix, installation));
    running = sources.map((source) =>
      runKafkaSource(source, {
        brokers,
        resolve,
        onEvent(event) {
          if (event.kind !== "delivered" && event.kind !== "committed") tell(source.metadata.name, describe(event));
        },
      }),
    );
  })().catch((error: unknown) => {
    if (!signal.aborted) throw error;
  });
  const joined = starting.then(() => Promise.all(running.map((source) => source.joined)));
  joined.catch(() => undefined);
  if (topics.created) {
    const late = new AbortController();
    const first = await Promise.race([
      joined.then(() => "joined"),
      delay(JOIN_MILLISECONDS_MAX, "late", { signal: late.signal }).catch(() => "joined"),
    ]);
    late.abort();
    if (first === "late")
      tell("kafka", `The consumer groups did not form within ${JOIN_MILLISECONDS_MAX / 1_000} s. The events wait.`);
  }
  return {
    sources: () => sources,
    async stop() {
      stopping.abort();
      await topics.stop();
      await starting;
      await Promise.all(running.map((source) => source.stop()));
    },
  };
}
