/** The one file that knows kafkajs. It is loaded at the first use: it costs tens of milliseconds, the first answer needs none. */
import { setTimeout as delay } from "node:timers/promises";
import type { Kafka, KafkaConfig, Producer, SASLOptions } from "kafkajs";
import { failure, log } from "./log.ts";
import {
  PUBLISH_BATCHES_WAITING_MAX,
  PUBLISH_MILLISECONDS_MAX,
  readSettingFile,
  required,
  SettingsError,
  settings,
} from "./settings.ts";

const CONNECT_MILLISECONDS_MAX = 2_000;
/** Twice in the time of a publication: the second request goes to the partition's new leader. */
const REQUEST_MILLISECONDS_MAX = PUBLISH_MILLISECONDS_MAX / 2;
/** A connection costs some milliseconds to open, and ten wake-ups a second to keep. */
const IDLE_MILLISECONDS = 5_000;
/** 0.2, 0.4, 0.8, 1.6 and 3.2 s: long enough for a partition to get a new leader. */
const SEND_RETRIES = { retries: 5, initialRetryTime: 200, maxRetryTime: 5_000, factor: 0, multiplier: 2 };
/** A broker that is down is for the outbox to wait for, not for us. */
const CONNECT_RETRIES = { retries: 1, initialRetryTime: 100, maxRetryTime: 100, factor: 0, multiplier: 1 };

function tls(): NonNullable<KafkaConfig["ssl"]> {
  const { KAFKA_TLS, KAFKA_TLS_CA_FILE, KAFKA_TLS_CERTIFICATE_FILE, KAFKA_TLS_KEY_FILE } = settings();
  if (!KAFKA_TLS) return false;
  return {
    ...(KAFKA_TLS_CA_FILE !== undefined && { ca: readSettingFile("KAFKA_TLS_CA_FILE") }),
    ...(KAFKA_TLS_CERTIFICATE_FILE !== undefined && { cert: readSettingFile("KAFKA_TLS_CERTIFICATE_FILE") }),
    ...(KAFKA_TLS_KEY_FILE !== undefined && { key: readSettingFile("KAFKA_TLS_KEY_FILE") }),
  };
}

function sasl(): SASLOptions | undefined {
  const { KAFKA_SASL_MECHANISM: mechanism, KAFKA_USERNAME: username, KAFKA_PASSWORD_FILE: file } = settings();
  if (username === undefined) return undefined;
  const password = file === undefined ? required("KAFKA_PASSWORD") : readSettingFile("KAFKA_PASSWORD_FILE");
  return { mechanism, username, password };
}

/** kafkajs looks into the queue of a connection every millisecond, also when nothing is in it: 3 % of a core, for each. */
async function quietenEmptyQueues(): Promise<void> {
  // @ts-expect-error kafkajs does not describe what is inside it
  const { default: RequestQueue } = await import("kafkajs/src/network/requestQueue/index.js");
  const { prototype } = RequestQueue as { prototype: Record<string, unknown> };
  const check = prototype.scheduleCheckPendingRequests as (this: { pending: unknown[] }) => void;
  if (check.name === "checkUnlessEmpty") return;
  prototype.scheduleCheckPendingRequests = function checkUnlessEmpty(this: { pending: unknown[] }) {
    if (this.pending.length > 0) check.call(this);
  };
}

/** A message of kafkajs: what happened, and why. */
export type Report = (message: string, reason: string) => void;

const toLog: Report = (message, reason) => log("warning", `kafka: ${message}`, { reason });

/**
 * A kafkajs client for these brokers, secured as the settings say. It connects when it is used.
 * @param report hears what kafkajs would print; our log, unless given
 * @throws {SettingsError} when a file that a setting names cannot be read
 */
export async function kafkaClient(brokers: readonly string[], report: Report = toLog): Promise<Kafka> {
  const { Kafka, logLevel } = await import("kafkajs");
  await quietenEmptyQueues();
  const identity = sasl();
  return new Kafka({
    clientId: process.env.K_SERVICE ?? "lotus",
    brokers: [...brokers],
    ssl: tls(),
    ...(identity !== undefined && { sasl: identity }),
    connectionTimeout: CONNECT_MILLISECONDS_MAX,
    authenticationTimeout: CONNECT_MILLISECONDS_MAX,
    requestTimeout: REQUEST_MILLISECONDS_MAX,
    retry: CONNECT_RETRIES,
    logLevel: logLevel.ERROR,
    logCreator:
      () =>
      ({ log: { message, error, broker } }) =>
        report(message, [broker, error].filter((part) => part !== undefined).join(": ")),
  });
}

let connected: Promise<Producer> | undefined;
let idleTimer: NodeJS.Timeout | undefined;
let sending: Promise<unknown> = Promise.resolve();
let waiting = 0;

async function connect(brokers: readonly string[]): Promise<Producer> {
  const { Partitioners } = await import("kafkajs");
  const kafka = await kafkaClient(brokers);
  const producer = kafka.producer({
    createPartitioner: Partitioners.DefaultPartitioner,
    allowAutoTopicCreation: false,
    maxInFlightRequests: 1,
    retry: SEND_RETRIES,
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

function disconnectInBackground(): void {
  disconnectKafka().catch((error: unknown) => log("warning", "Kafka was not left in order", failure(error)));
}

export interface KafkaRecord {
  readonly topic: string;
  readonly key: string | null;
  readonly value: string;
  readonly headers: Readonly<Record<string, string>>;
}

async function sendBatch(brokers: readonly string[], records: readonly KafkaRecord[]): Promise<void> {
  connected ??= connect(brokers);
  const producer = await connected;
  const topics = [...new Set(records.map(({ topic }) => topic))];
  await producer.sendBatch({
    acks: -1,
    timeout: REQUEST_MILLISECONDS_MAX,
    topicMessages: topics.map((topic) => ({ topic, messages: records.filter((record) => record.topic === topic) })),
  });
}

async function sendInTime(brokers: readonly string[], records: readonly KafkaRecord[]): Promise<void> {
  clearTimeout(idleTimer);
  const late = new AbortController();
  try {
    const tooLong = delay(PUBLISH_MILLISECONDS_MAX, "late" as const, late);
    if ((await Promise.race([sendBatch(brokers, records), tooLong])) === "late") {
      throw new Error(`Kafka did not acknowledge within ${PUBLISH_MILLISECONDS_MAX} ms`);
    }
    idleTimer = setTimeout(disconnectInBackground, IDLE_MILLISECONDS).unref();
  } catch (error) {
    disconnectInBackground();
    throw error;
  } finally {
    late.abort();
  }
}

/**
 * Sends records in one request a broker, acknowledged by all in-sync replicas. One batch is in flight at a time.
 * @throws when the brokers did not acknowledge every one; some may have arrived all the same
 */
export async function sendToKafka(brokers: readonly string[], records: readonly KafkaRecord[]): Promise<void> {
  if (waiting >= PUBLISH_BATCHES_WAITING_MAX) throw new Error(`${waiting} batches wait for Kafka already`);
  waiting++;
  const turn = sending.then(() => sendInTime(brokers, records)).finally(() => waiting--);
  sending = turn.catch(() => undefined);
  await turn;
}
