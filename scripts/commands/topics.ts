/** lotus topics: creates the topics that the triggers name. */
import * as v from "valibot";
import { Brokers, KafkaPrefix, settings } from "#kernel/settings";
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { brokers, folder, readChoice, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { createTopics, findTopics, PARTITIONS } from "../kafka/topics.ts";
import { runOf } from "../local/run-file.ts";

export default command({
  about: "Creates the topics that are missing. Existing topics stay as they are.",
  options: {
    brokers,
    folder,
    prefix: { type: "string", value: "TEXT", about: "the prefix of the topics (default KAFKA_PREFIX)" },
    replication: {
      type: "string",
      value: "1|3",
      about: "copies of each record (default: 3 with three brokers, else 1)",
    },
  },
  async run(values) {
    const replication = values.replication && readChoice("replication", values.replication, ["1", "3"]);
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
      ...(replication && { replication: replication === "3" ? 3 : 1 }),
    });
    for (const topic of await findTopics(named)) {
      print(made.includes(topic) ? `${topic}: created, ${PARTITIONS} partitions` : `${topic}: exists`);
    }
  },
});
