/** lotus preflight: proves that every role logs in and every topic accepts a record, before functions roll. */
import { resolve } from "node:path";
import { required, settings } from "#kernel/settings";
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { print } from "../cli/output.ts";
import { loginFaults } from "../database/roles.ts";
import { SERVICES } from "../database/sql.ts";
import { findTopics, topicFaults } from "../kafka/topics.ts";

export default command({
  about: "Logs in as every role and sends an event to every topic, as functions do. Triggers ignore the event.",
  notes: "A deployment runs it as a Job after `migrate` and `topics`. KAFKA_BROKERS and KAFKA_PREFIX name the topics.",
  options: {
    secrets: {
      type: "string",
      value: "FOLDER",
      about: "the folder with database-SERVICE/url and database-SERVICE/password of each service",
    },
  },
  async run(values) {
    if (values.secrets === undefined) throw new UsageError("lotus preflight needs --secrets FOLDER.");
    const { KAFKA_PREFIX: prefix } = settings();
    const brokers = required("KAFKA_BROKERS");
    const [roles, topics] = await Promise.all([loginFaults(resolve(values.secrets)), topicFaults(brokers, prefix)]);
    const faults = [...roles, ...topics];
    if (faults.length > 0) throw new Refusal(faults.join("\n"));
    const names = await findTopics(prefix);
    print(`${SERVICES.length} roles log in, and ${names.length} topics accept records: ${names.join(", ")}.`);
  },
});
