/**
 * Knative's KafkaSource for one machine: a consumer group that hands records to functions over HTTP. Also a program:
 * `tsx scripts/sources/kafka-source.ts --brokers host:port --sink-template 'http://{name}.example' [--folder knative/sources]`.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { runCommand, UsageError } from "../cli/command.ts";
import { ROOT } from "../project/functions.ts";
import { KafkaConsumer, type RunningSource, type SourceOptions } from "./consumer.ts";
import { type KafkaSource, parseSource } from "./delivery.ts";

export { describe, type RunningSource, type SourceEvent, type SourceOptions } from "./consumer.ts";

/**
 * Runs a source until it is stopped. It waits for brokers that are down, and reports them as trouble.
 * It delivers each record at least once: a record in flight when the source is killed comes again.
 */
export function runKafkaSource(source: KafkaSource, options: SourceOptions): RunningSource {
  return new KafkaConsumer(source, options);
}

/** The KafkaSources of a folder of YAML files. @throws {Error} naming the file that cannot be run here */
export async function readKafkaSources(folder: string): Promise<KafkaSource[]> {
  const files = (await readdir(folder)).filter((file) => /\.ya?ml$/.test(file)).sort();
  const sources = await Promise.all(
    files.map(async (file) => parseSource(file, await readFile(join(folder, file), "utf8"))),
  );
  return sources.filter((source) => source.kind === "KafkaSource");
}

const USAGE =
  "Usage: --sink-template 'http://{name}.lotus.svc.cluster.local' [--brokers host:port,…] [--folder knative/sources]";

/** The program: runs every KafkaSource of a folder until SIGTERM. */
async function main(): Promise<void> {
  const options = {
    brokers: { type: "string" },
    "sink-template": { type: "string" },
    folder: { type: "string" },
  } as const;
  const {
    brokers,
    "sink-template": template,
    folder = join(ROOT, "knative", "sources"),
  } = parseArgs({ options }).values;
  if (template === undefined || !template.includes("{name}") || !URL.canParse(template.replaceAll("{name}", "name"))) {
    throw new UsageError(`--sink-template must be a URL with {name} in it. ${USAGE}`);
  }
  const sources = await readKafkaSources(folder);
  if (sources.length === 0) throw new Error(`There is no KafkaSource in ${folder}.`);
  const running = sources.map((source) => {
    const { name } = source.metadata;
    return runKafkaSource(source, {
      brokers: brokers?.split(",") ?? source.spec.bootstrapServers,
      resolve: (functionName) => template.replaceAll("{name}", functionName),
      onEvent(event) {
        if (event.kind === "delivered" || event.kind === "committed") return;
        console.log(JSON.stringify({ time: new Date().toISOString(), source: name, ...event }));
      },
    });
  });
  const stop = () => void Promise.all(running.map((source) => source.stop())).then(() => process.exit());
  process.once("SIGTERM", stop);
  process.once("SIGINT", stop);
}

if (process.argv[1] === import.meta.filename) runCommand(main);
