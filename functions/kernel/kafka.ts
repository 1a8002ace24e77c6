/** Sends records to Kafka. The only file that imports kafkajs, at the first publication: loading it takes tens of milliseconds. */
import { setTimeout as delay } from "node:timers/promises";
import type { Kafka, KafkaConfig, Producer, SASLOptions } from "kafkajs";
import { PUBLISH_BATCHES_WAITING_MAX, PUBLISH_MILLISECONDS_MAX } from "./limits.ts";
import { failure, log } from "./log.ts";
import { readSettingFile, required, settings } from "./settings.ts";

const CONNECT_MILLISECONDS_MAX = 2_000;
const REQUEST_MILLISECONDS_MAX = 5_000;
/** A connection costs some 20 ms to open, and ten wake-ups a second to keep. */
const IDLE_MILLISECONDS = 10_000;
const CONNECT_RETRIES = { retries: 1, initialRetryTime: 100, maxRetryTime: 100, factor: 0, multiplier: 1 };
/**
 * When kafkajs repeats a send, it skips the brokers that have answered, also for partitions whose leader has moved to one of them.
 * It would report lost events as acknowledged. So kafkajs sends a batch once, and `sendUntil` repeats the complete batch.
 */
const SEND_RETRIES = { retries: 0 };
const PAUSE_MILLISECONDS_MIN = 100;
const PAUSE_MILLISECONDS_MAX = 1_000;
/** A client that cannot connect reports it several times a second. */
const REPORT_MILLISECONDS_MIN = 1_000;

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
  const {
    KAFKA_SASL_MECHANISM: mechanism,
    KAFKA_USERNAME,
    KAFKA_USERNAME_FILE,
    KAFKA_PASSWORD_FILE: file,
  } = settings();
  // Each new connection reads both files, so a rotated pair arrives together.
  const username = KAFKA_USERNAME_FILE === undefined ? KAFKA_USERNAME : readSettingFile("KAFKA_USERNAME_FILE");
  if (username === undefined) return undefined;
  const password = file === undefined ? required("KAFKA_PASSWORD") : readSettingFile("KAFKA_PASSWORD_FILE");
  return { mechanism, username, password };
}

/** Stops the timer of idle connections: kafkajs polls the queue of each every millisecond, which costs 3 % of a core. */
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

/** Receives a message of kafkajs and its reason. */
export type Report = (message: string, reason: string) => void;

let reportedAt = -REPORT_MILLISECONDS_MIN;
let lastReport = "nothing";
const toLog: Report = (message, reason) => {
  lastReport = [message, reason].filter((part) => part !== "").join(": ");
  if (performance.now() - reportedAt < REPORT_MILLISECONDS_MIN) return;
  reportedAt = performance.now();
  log("warning", `kafka: ${message}`, reason === "" ? {} : { reason });
};

/**
 * Makes a kafkajs client for brokers, secured as the settings say. It connects when it is used.
 * @param report receives the messages of kafkajs; the default writes them to the log
 * @param clientId the name of the client in the logs of brokers and in its consumer groups; the default is the name of the function
 * @throws {SettingsError} when a file that a setting names cannot be read
 */
export async function kafkaClient(
  brokers: readonly string[],
  report: Report = toLog,
  clientId = process.env.K_SERVICE ?? "lotus",
): Promise<Kafka> {
  const { Kafka, logLevel } = await import("kafkajs");
  await quietenEmptyQueues();
  const identity = sasl();
  return new Kafka({
    clientId,
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
  disconnectKafka().catch((error: unknown) =>
    log("warning", "the connection to Kafka was not closed cleanly", failure(error)),
  );
}

function disconnectWhenIdle(): void {
  idleTimer = setTimeout(disconnectInBackground, IDLE_MILLISECONDS).unref();
}

/** The broker refuses at least one of the events for good. `message` contains the reason. */
export class Refused extends Error {}

/** The errors of brokers that always refuse a record or a batch. Other errors may pass. */
const REFUSALS = ["MESSAGE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD"];

function refusal(error: unknown): Refused | undefined {
  const { cause, type, message } = error as Error & { type?: string };
  if (cause instanceof Error) return refusal(cause);
  return REFUSALS.includes(type ?? "") ? new Refused(`Kafka does not accept it: ${message} (${type}).`) : undefined;
}

/** Contains a record as Lotus publishes it. */
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

/** Whether a later attempt with a new connection may succeed. kafkajs also calls a missing topic retriable. */
function mayPass(error: unknown): boolean {
  const { cause, retriable, type } = error as { cause?: unknown; retriable?: boolean; type?: string };
  if (cause instanceof Error) return mayPass(cause);
  return retriable === true && type !== "UNKNOWN_TOPIC_OR_PARTITION";
}

/** Sends records, with repetitions until the deadline: the failover of a leader takes seconds, and a broker often returns soon. */
async function sendUntil(deadline: number, brokers: readonly string[], records: readonly KafkaRecord[]): Promise<void> {
  clearTimeout(idleTimer);
  lastReport = "nothing";
  for (let pause = PAUSE_MILLISECONDS_MIN; ; pause = Math.min(2 * pause, PAUSE_MILLISECONDS_MAX)) {
    let late: NodeJS.Timeout | undefined;
    try {
      // An aborted delay of node:timers/promises costs as much as an error with a stack.
      const tooLong = new Promise<never>((_, reject) => {
        const sayLate = () => reject(new Error(`Kafka did not acknowledge in time; the last error was: ${lastReport}`));
        late = setTimeout(sayLate, deadline - performance.now());
      });
      await Promise.race([sendBatch(brokers, records), tooLong]);
      disconnectWhenIdle();
      return;
    } catch (error) {
      const refused = refusal(error);
      if (refused !== undefined) {
        disconnectWhenIdle();
        throw refused;
      }
      disconnectInBackground();
      if (!mayPass(error) || performance.now() + pause > deadline) throw error;
    } finally {
      clearTimeout(late);
    }
    await delay(pause);
  }
}

/**
 * Sends records in one request a broker, acknowledged by all in-sync replicas. One batch is in flight at a time.
 * @throws {Refused} when the brokers refuse one of them for good
 * @throws when the brokers did not acknowledge every one within PUBLISH_MILLISECONDS_MAX; some may have arrived
 */
export async function sendToKafka(brokers: readonly string[], records: readonly KafkaRecord[]): Promise<void> {
  if (waiting >= PUBLISH_BATCHES_WAITING_MAX) throw new Error(`${waiting} batches wait for Kafka already`);
  const deadline = performance.now() + PUBLISH_MILLISECONDS_MAX;
  waiting++;
  const turn = sending.then(() => sendUntil(deadline, brokers, records)).finally(() => waiting--);
  sending = turn.catch(() => undefined);
  await turn;
}
