/** lotus kafka: runs Apache Kafka alone until Ctrl-C. */
import { join } from "node:path";
import { command } from "../cli/command.ts";
import { EXIT_CODES, Refusal } from "../cli/errors.ts";
import { folder, readChoice, readCount, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { startKafka } from "../kafka/cluster.ts";
import { createTopics } from "../kafka/topics.ts";
import { onStopSignal } from "../process/signals.ts";

/** Three brokers use this port and the next two. */
const PORT_MAX = 65_533;

export default command({
  about: "Runs Apache Kafka alone until Ctrl-C and creates the topics: in docker, else with Java 17 and Maven.",
  options: {
    replicas: { type: "string", value: "1|3", about: "how many brokers", default: "1" },
    port: {
      type: "string",
      value: "NUMBER",
      about: "the port of the first broker; the others follow",
      default: "9092",
    },
    folder,
  },
  async run(values) {
    const replicas = readChoice("replicas", values.replicas, ["1", "3"]) === "3" ? 3 : 1;
    const port = readCount("port", values.port, 1, PORT_MAX);
    if (process.env.KAFKA_BROKERS)
      throw new Refusal(`KAFKA_BROKERS names a Kafka already: ${process.env.KAFKA_BROKERS}. Unset it to run one here.`);
    const began = performance.now();
    const kafka = await startKafka({
      brokers: replicas,
      port,
      folder: join(readFolder(values.folder), "kafka", `brokers-${replicas}`),
      onProgress: print,
    });
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    print(`Kafka serves at ${kafka.bootstrap.join(",")} (after ${seconds} s). Ctrl-C ends it.`);
    print(`For programs: KAFKA_BROKERS=${kafka.bootstrap.join(",")}`);
    const made = await createTopics(kafka.bootstrap);
    if (made.length > 0) print(`Created the topics ${made.join(" and ")}.`);
    await new Promise<void>((resolve, reject) =>
      onStopSignal(
        () => void kafka.stop().then(resolve, reject),
        () => process.exit(EXIT_CODES.interrupted),
      ),
    );
    process.exit(EXIT_CODES.done);
  },
});
