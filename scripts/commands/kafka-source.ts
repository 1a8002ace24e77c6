/** lotus kafka-source: runs the KafkaSources of a folder until it is stopped. */
import { join, resolve } from "node:path";
import { settings } from "#kernel/settings";
import { command } from "../cli/command.ts";
import { EXIT_CODES, Refusal, UsageError } from "../cli/errors.ts";
import { brokers } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { onStopSignal } from "../process/signals.ts";
import { ROOT } from "../project/paths.ts";
import { installed, readKafkaSources, runKafkaSource } from "../sources/kafka-source.ts";

export default command({
  about: "Delivers the records of Kafka to functions, as Knative's KafkaSource does.",
  options: {
    brokers,
    "sink-template": {
      type: "string",
      value: "URL",
      about: "the address of a function; {name} stands for its name",
    },
    sources: { type: "string", value: "FOLDER", about: "YAML files of KafkaSources (default knative/sources)" },
  },
  async run({ brokers: hosts, "sink-template": template, sources: given }) {
    if (!template?.includes("{name}") || !URL.canParse(template.replaceAll("{name}", "name"))) {
      throw new UsageError("--sink-template must be a URL that contains {name}, such as http://{name}.example.");
    }
    const folder = given === undefined ? join(ROOT, "knative", "sources") : resolve(given);
    const sources = await readKafkaSources(folder);
    if (sources.length === 0) throw new Refusal(`The folder ${folder} contains no KafkaSource.`);
    const running = sources.map((source) =>
      runKafkaSource(installed(source, settings().KAFKA_PREFIX), {
        brokers: hosts?.split(",") ?? source.spec.bootstrapServers,
        resolve: (name) => template.replaceAll("{name}", name),
        onEvent(event) {
          if (event.kind === "delivered" || event.kind === "committed") return;
          print(JSON.stringify({ time: new Date().toISOString(), source: source.metadata.name, ...event }));
        },
      }),
    );
    await new Promise<void>((resolve) =>
      onStopSignal(
        () => void Promise.all(running.map((source) => source.stop())).then(() => resolve()),
        () => process.exit(EXIT_CODES.interrupted),
      ),
    );
    process.exit(EXIT_CODES.done);
  },
});
