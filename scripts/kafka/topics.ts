/** `npm run topics`: makes the topics that the triggers name, where they are missing. Safe to run again. */
import { parseArgs } from "node:util";
import * as v from "valibot";
import { kafkaClient } from "#kernel/kafka";
import { Brokers, RECORD_BYTES_MAX, settings } from "#kernel/settings";
import { runCommand, UsageError } from "../cli/command.ts";
import { findFunctions } from "../project/functions.ts";

const PARTITIONS = 6;
const HOUR_MILLISECONDS = 3_600_000;
/** A week: what is not handled by then is still in the outbox. */
const RETENTION_MILLISECONDS = 7 * 24 * HOUR_MILLISECONDS;
const ANSWER_MILLISECONDS_MAX = 15_000;
const LEADERS_MILLISECONDS_MAX = 10_000;
const REPLICATION = 3;
const USAGE = "Usage: npm run topics -- [--brokers host:port,…] [--replication 1|3]";

/** The topics that triggers take events from. */
export async function findTopics(): Promise<string[]> {
  const functions = await findFunctions();
  const topics = functions.flatMap(({ description }) => ("topic" in description ? [description.topic] : []));
  return [...new Set(topics)].sort();
}

/**
 * Makes the topics that are missing, each with 6 partitions. Those that are there stay as they are.
 * @param replication copies of each record: 3 where there are that many brokers, else 1, unless given. With 3, two of them
 *   must be written before a record counts as accepted.
 * @returns the topics that were made
 * @throws {Error} a sentence, when the brokers cannot be reached or do not want to
 */
export async function createTopics(
  bootstrap: readonly string[],
  options: { readonly replication?: 1 | 3 } = {},
): Promise<string[]> {
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
    const wanted = await findTopics();
    const there = new Set(await admin.listTopics());
    const missing = wanted.filter((topic) => !there.has(topic));
    if (missing.length === 0) return [];
    const { brokers } = await admin.describeCluster();
    const replication = options.replication ?? (brokers.length >= REPLICATION ? REPLICATION : 1);
    await admin.createTopics({
      waitForLeaders: true,
      timeout: LEADERS_MILLISECONDS_MAX,
      topics: missing.map((topic) => ({
        topic,
        numPartitions: PARTITIONS,
        replicationFactor: replication,
        configEntries: [
          { name: "cleanup.policy", value: "delete" },
          { name: "retention.ms", value: String(RETENTION_MILLISECONDS) },
          { name: "max.message.bytes", value: String(RECORD_BYTES_MAX) },
          { name: "min.insync.replicas", value: String(replication === REPLICATION ? 2 : 1) },
        ],
      })),
    });
    return missing;
  };
  try {
    return await Promise.race([work(), late]);
  } catch (error) {
    const { errors, message } = error as Error & { errors?: Error[] };
    const why = errors?.[0]?.message ?? (message || reason);
    throw new Error(`The topics could not be made at ${bootstrap.join(",")}: ${why}. Does Kafka run there?`);
  } finally {
    await admin.disconnect().catch(() => undefined);
  }
}

async function main(): Promise<void> {
  const options = { brokers: { type: "string" }, replication: { type: "string" } } as const;
  const { brokers, replication } = parseArgs({ options }).values;
  if (replication !== undefined && replication !== "1" && replication !== "3") {
    throw new UsageError(`--replication must be 1 or 3; ${replication} is not. ${USAGE}`);
  }
  const given = v.safeParse(v.optional(Brokers), brokers);
  if (!given.success) throw new UsageError(`--brokers must be ${given.issues[0].message}; ${brokers} is not. ${USAGE}`);
  const bootstrap = given.output ?? settings().KAFKA_BROKERS;
  if (bootstrap === undefined) throw new UsageError(`Which Kafka? Set KAFKA_BROKERS, or give --brokers. ${USAGE}`);
  const made = await createTopics(
    bootstrap,
    replication === undefined ? {} : { replication: replication === "3" ? 3 : 1 },
  );
  for (const topic of await findTopics()) {
    console.log(made.includes(topic) ? `${topic}: made, ${PARTITIONS} partitions` : `${topic}: was there already`);
  }
}

if (process.argv[1] === import.meta.filename) runCommand(main);
