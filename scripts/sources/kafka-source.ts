/** Knative's KafkaSource for one machine: a consumer group that delivers records to functions over HTTP. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { KafkaConsumer, type RunningSource, type SourceOptions } from "./consumer.ts";
import { type KafkaSource, parseSource } from "./delivery.ts";

export { describe, type RunningSource, type SourceEvent, type SourceOptions } from "./consumer.ts";

/**
 * Runs a source until it is stopped. It waits for brokers that are down, and reports them.
 * It delivers each record at least once: a record in flight when the source is killed comes again.
 */
export function runKafkaSource(source: KafkaSource, options: SourceOptions): RunningSource {
  return new KafkaConsumer(source, options);
}

/**
 * Returns a source with the names that it has in one installation, so that several installations can share a Kafka.
 * @param prefix the beginning of the topics and of the consumer group
 * @param installation ends the name of the consumer group when other installations read the same topics
 */
export function installed(source: KafkaSource, prefix: string, installation?: string): KafkaSource {
  const { topics, consumerGroup } = source.spec;
  const suffix = installation === undefined ? "" : `.${installation}`;
  return {
    ...source,
    spec: {
      ...source.spec,
      topics: topics.map((topic) => prefix + topic),
      consumerGroup: prefix + consumerGroup + suffix,
    },
  };
}

/** The KafkaSources of a folder of YAML files. @throws {Error} naming the file that cannot be run here */
export async function readKafkaSources(folder: string): Promise<KafkaSource[]> {
  const files = (await readdir(folder)).filter((file) => /\.ya?ml$/.test(file)).sort();
  const sources = await Promise.all(
    files.map(async (file) => parseSource(file, await readFile(join(folder, file), "utf8"))),
  );
  return sources.filter((source) => source.kind === "KafkaSource");
}
