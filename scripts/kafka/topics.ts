/** Creates the topics that the triggers name. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Admin } from "kafkajs";
import { disconnectKafka, kafkaClient, sendToKafka } from "#kernel/kafka";
import { PREFLIGHT_TYPE, RECORD_BYTES_MAX } from "#kernel/limits";
import { findFunctions } from "../project/functions.ts";

export const PARTITIONS = 6;
const HOUR_MILLISECONDS = 3_600_000;
/** One week. An event that is not settled by then is still in the outbox. */
const RETENTION_MILLISECONDS = 7 * 24 * HOUR_MILLISECONDS;
const ANSWER_MILLISECONDS_MAX = 15_000;
const LEADERS_MILLISECONDS_MAX = 10_000;
const REPLICATION = 3;
/** Kafka's codes: a resource of the kind topic, and a value that was set for this topic. */
const TOPIC_RESOURCE = 2;
const TOPIC_CONFIG_SOURCE = 1;

/**
 * The broker then decompresses records on arrival. Producers may use every codec, and the local consumer, which knows only gzip,
 * reads all records.
 */
const UNCOMPRESSED = { name: "compression.type", value: "uncompressed" };

/** Returns the topics that triggers handle or publish, each with the prefix. */
export async function findTopics(prefix = ""): Promise<string[]> {
  const functions = await findFunctions();
  const topics = functions.flatMap(({ description }) =>
    "topic" in description
      ? [description.topic]
      : "publishes" in description && description.publishes
        ? [description.publishes.topic]
        : [],
  );
  return [...new Set(topics)].sort().map((topic) => prefix + topic);
}

/** Makes the brokers decompress the records of existing topics. The other settings of each topic stay as they are. */
async function uncompress(admin: Admin, topics: readonly string[]): Promise<void> {
  if (topics.length === 0) return;
  const { resources } = await admin.describeConfigs({
    includeSynonyms: false,
    resources: topics.map((name) => ({ type: TOPIC_RESOURCE, name })),
  });
  const changed = resources.flatMap(({ resourceName, configEntries }) => {
    const set = configEntries.filter(({ configSource }) => configSource === TOPIC_CONFIG_SOURCE);
    const entries = set.map(({ configName: name, configValue: value }) => ({ name, value }));
    if (entries.some(({ name, value }) => name === UNCOMPRESSED.name && value === UNCOMPRESSED.value)) return [];
    // This request of the protocol removes every setting that it does not name.
    const kept = entries.filter(({ name }) => name !== UNCOMPRESSED.name);
    return [{ type: TOPIC_RESOURCE, name: resourceName, configEntries: [...kept, UNCOMPRESSED] }];
  });
  if (changed.length > 0) await admin.alterConfigs({ validateOnly: false, resources: changed });
}

/** The options of the created topics. */
export interface TopicOptions {
  /** Copies of each record; the default is 3 where there are that many brokers, else 1. */
  readonly replication?: number;
  /** Partitions of each topic; the default is 6. */
  readonly partitions?: number;
  /** The size of a partition above which Kafka deletes its oldest records. */
  readonly retentionBytes?: number;
  /** The beginning of every topic's name. */
  readonly prefix?: string;
}

/** The errors of a broker that has not learned of a new topic yet. */
const NOT_YET = ["UNKNOWN_TOPIC_OR_PARTITION", "LEADER_NOT_AVAILABLE"];
const LEADERS_PAUSE_MILLISECONDS = 100;

/** Waits until every partition of new topics has a leader. kafkajs stops after a few tries, and a busy broker needs more. */
async function waitForLeaders(admin: Admin, topics: string[]): Promise<void> {
  const until = performance.now() + LEADERS_MILLISECONDS_MAX;
  for (;;) {
    try {
      const { topics: found } = await admin.fetchTopicMetadata({ topics });
      if (found.every(({ partitions }) => partitions.every(({ leader }) => leader >= 0))) return;
      if (performance.now() > until) throw new Error(`no leader within ${LEADERS_MILLISECONDS_MAX / 1000} s`);
    } catch (error) {
      const { type = "", cause } = error as { type?: string; cause?: { type?: string } };
      if (!NOT_YET.includes(cause?.type ?? type) || performance.now() > until) throw error;
    }
    await delay(LEADERS_PAUSE_MILLISECONDS);
  }
}

/**
 * Creates the missing topics and makes the brokers decompress the records of the existing ones.
 * @param options With `replication` above 1, a record counts as accepted when all copies but one are written.
 * @returns the topics that were created
 * @throws {Error} a sentence, when the brokers cannot be reached or refuse
 */
export async function createTopics(bootstrap: readonly string[], options: TopicOptions = {}): Promise<string[]> {
  let reason = "no answer";
  const kafka = await kafkaClient(bootstrap, (message, why) => {
    reason = why === "" ? message : why;
  });
  const admin = kafka.admin({ retry: { retries: 3, initialRetryTime: 200, maxRetryTime: 1_000 } });
  const timer = AbortSignal.timeout(ANSWER_MILLISECONDS_MAX);
  const late = new Promise<never>((_, reject) => {
    timer.addEventListener("abort", () => reject(new Error(`no answer within ${ANSWER_MILLISECONDS_MAX / 1000} s`)));
  });
  const work = async () => {
    await admin.connect();
    const wanted = await findTopics(options.prefix);
    const there = new Set(await admin.listTopics());
    const missing = wanted.filter((topic) => !there.has(topic));
    await uncompress(
      admin,
      wanted.filter((topic) => there.has(topic)),
    );
    if (missing.length === 0) return [];
    const { brokers } = await admin.describeCluster();
    const replication = options.replication ?? (brokers.length >= REPLICATION ? REPLICATION : 1);
    await admin.createTopics({
      waitForLeaders: false,
      timeout: LEADERS_MILLISECONDS_MAX,
      topics: missing.map((topic) => ({
        topic,
        numPartitions: options.partitions ?? PARTITIONS,
        replicationFactor: replication,
        configEntries: [
          { name: "cleanup.policy", value: "delete" },
          { name: "retention.ms", value: String(RETENTION_MILLISECONDS) },
          { name: "max.message.bytes", value: String(RECORD_BYTES_MAX) },
          { name: "min.insync.replicas", value: String(Math.max(1, replication - 1)) },
          ...(options.retentionBytes === undefined
            ? []
            : [{ name: "retention.bytes", value: String(options.retentionBytes) }]),
          UNCOMPRESSED,
        ],
      })),
    });
    await waitForLeaders(admin, missing);
    return missing;
  };
  try {
    return await Promise.race([work(), late]);
  } catch (error) {
    const { errors, message } = error as Error & { errors?: Error[] };
    const why = errors?.[0]?.message ?? (message || reason);
    throw new Error(`The topics could not be created at ${bootstrap.join(",")}: ${why}. Does Kafka run there?`);
  } finally {
    await admin.disconnect().catch(() => undefined);
  }
}

/** Returns the event that a deployment sends to a topic. Triggers ignore its type. */
function preflightRecord(topic: string) {
  const attributes = {
    ce_specversion: "1.0",
    ce_id: randomUUID(),
    ce_source: "/lotus/preflight",
    ce_type: PREFLIGHT_TYPE,
    ce_time: new Date().toISOString(),
  };
  return { topic, key: null, value: "{}", headers: { ...attributes, "content-type": "application/json" } };
}

/**
 * Sends one event to each topic, as functions do, and waits until all in-sync replicas have it.
 * @returns a sentence for each topic that does not accept it
 */
export async function topicFaults(bootstrap: readonly string[], prefix: string): Promise<string[]> {
  const faults: string[] = [];
  try {
    for (const topic of await findTopics(prefix)) {
      await sendToKafka(bootstrap, [preflightRecord(topic)]).catch((error: Error) =>
        faults.push(`The topic ${topic} at ${bootstrap.join(",")} accepts no record: ${error.message}`),
      );
    }
  } finally {
    await disconnectKafka();
  }
  return faults;
}

/** The pause between two attempts to reach brokers that are unavailable. */
const RETRY_MILLISECONDS = 2_000;

/**
 * Creates the topics now, or else in the background as soon as the brokers answer.
 * @param tell receives a sentence when the brokers are unavailable, and when the topics exist
 */
export async function createTopicsWhenPossible(
  bootstrap: readonly string[],
  prefix: string,
  tell: (news: string) => void,
): Promise<{ readonly created: boolean; stop(): Promise<void> }> {
  const attempt = () =>
    createTopics(bootstrap, { prefix }).then(
      () => undefined,
      (error: Error) => error.message,
    );
  const why = await attempt();
  if (why === undefined) return { created: true, stop: async () => undefined };
  tell(`${why} Lotus continues without Kafka: the outbox keeps the events until the brokers answer.`);
  const stop = new AbortController();
  const creating = (async () => {
    while (!stop.signal.aborted) {
      await delay(RETRY_MILLISECONDS, undefined, { signal: stop.signal }).catch(() => undefined);
      if (!stop.signal.aborted && (await attempt()) === undefined)
        return tell("The brokers answer, and the topics exist.");
    }
  })();
  return {
    created: false,
    async stop() {
      stop.abort();
      await creating;
    },
  };
}
