/** The one file that knows kafkajs. */
import type { Producer } from "kafkajs";
import { failure, log } from "./log.ts";
import { PUBLISH_MILLISECONDS_MAX } from "./settings.ts";

/** A producer polls its request queue some 800 times a second while connected, so it does not stay connected when idle. */
const IDLE_MILLISECONDS = 2_000;

let connected: Promise<Producer> | undefined;
let idleTimer: NodeJS.Timeout | undefined;

async function connect(brokers: readonly string[]): Promise<Producer> {
  // Loaded here and not above: it costs tens of milliseconds, and the first answer does not need it.
  const { Kafka, Partitioners, logLevel } = await import("kafkajs");
  const kafka = new Kafka({
    clientId: process.env.K_SERVICE ?? "lotus",
    brokers: [...brokers],
    logLevel: logLevel.NOTHING,
    connectionTimeout: 2_000,
    requestTimeout: PUBLISH_MILLISECONDS_MAX,
    retry: { retries: 1, initialRetryTime: 100 },
  });
  const producer = kafka.producer({
    createPartitioner: Partitioners.DefaultPartitioner,
    allowAutoTopicCreation: false,
  });
  await producer.connect();
  return producer;
}

/** Ends the connection; the next publication opens a new one. */
export async function disconnectKafka(): Promise<void> {
  clearTimeout(idleTimer);
  const producer = connected;
  connected = undefined;
  await (await producer?.catch(() => undefined))?.disconnect();
}

export interface KafkaRecord {
  readonly topic: string;
  readonly key: string | null;
  readonly value: string;
  readonly headers: Readonly<Record<string, string>>;
}

/**
 * Sends records in one request a broker, acknowledged by all in-sync replicas.
 * @throws when the brokers did not acknowledge every one; some may have arrived all the same
 */
export async function sendToKafka(brokers: readonly string[], records: readonly KafkaRecord[]): Promise<void> {
  clearTimeout(idleTimer);
  connected ??= connect(brokers);
  try {
    const producer = await connected;
    const topics = [...new Set(records.map(({ topic }) => topic))];
    await producer.sendBatch({
      acks: -1,
      timeout: PUBLISH_MILLISECONDS_MAX,
      topicMessages: topics.map((topic) => ({ topic, messages: records.filter((record) => record.topic === topic) })),
    });
  } catch (error) {
    await disconnectKafka().catch((reason: unknown) => log("warning", "Kafka was not left in order", failure(reason)));
    throw error;
  }
  idleTimer = setTimeout(() => void disconnectKafka().catch(() => undefined), IDLE_MILLISECONDS).unref();
}
