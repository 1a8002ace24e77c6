/** lotus topics: creates the topics that the triggers name. */
import * as v from "valibot";
import { Brokers, KafkaPrefix, settings } from "#kernel/settings";
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { brokers, folder, readCount, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { createTopics, findTopics, PARTITIONS } from "../kafka/topics.ts";
import { runOf } from "../local/run-file.ts";

const REPLICATION_MAX = 9;
const PARTITIONS_MAX = 1_000;

export default command({
  about: "Creates the topics that are missing. Existing topics stay as they are.",
  options: {
    brokers,
    folder,
    prefix: { type: "string", value: "TEXT", about: "the prefix of the topics (default KAFKA_PREFIX)" },
    replication: {
      type: "string",
      value: "NUMBER",
      about: "copies of each record (default: 3 with three brokers, else 1)",
    },
    partitions: { type: "string", value: "NUMBER", about: `partitions of a new topic (default ${PARTITIONS})` },
    "retention-bytes": {
      type: "string",
      value: "BYTES",
      about: "size of a partition above which Kafka deletes the oldest records (default: only their age counts)",
    },
  },
  async run(values) {
    const number = (option: "replication" | "partitions" | "retention-bytes", most: number) => {
      const text = values[option];
      return text === undefined ? undefined : readCount(option, text, 1, most);
    };
    const replication = number("replication", REPLICATION_MAX);
    const partitions = number("partitions", PARTITIONS_MAX);
    const retentionBytes = number("retention-bytes", Number.MAX_SAFE_INTEGER);
    const { brokers: hosts, prefix } = values;
    const given = v.safeParse(v.object({ brokers: v.optional(Brokers), prefix: v.optional(KafkaPrefix) }), {
      brokers: hosts,
      prefix,
    });
    if (!given.success) {
      const [issue] = given.issues;
      throw new UsageError(`--${v.getDotPath(issue)} must be ${issue.message}; "${issue.input}" is not.`);
    }
    const bootstrap =
      given.output.brokers ?? settings().KAFKA_BROKERS ?? (await runOf(readFolder(values.folder)))?.kafka?.bootstrap;
    if (bootstrap === undefined)
      throw new UsageError("No Kafka is named. Give --brokers host:port, or set KAFKA_BROKERS.");
    const named = given.output.prefix ?? settings().KAFKA_PREFIX;
    const made = await createTopics(bootstrap, {
      prefix: named,
      ...(replication !== undefined && { replication }),
      ...(partitions !== undefined && { partitions }),
      ...(retentionBytes !== undefined && { retentionBytes }),
    });
    for (const topic of await findTopics(named)) {
      print(made.includes(topic) ? `${topic}: created, ${partitions ?? PARTITIONS} partitions` : `${topic}: exists`);
    }
  },
});
