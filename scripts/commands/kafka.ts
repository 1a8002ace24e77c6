/** `npm run kafka`: Apache Kafka alone, until Ctrl-C. `-- --brokers 3` for three of them, `-- --port N` for other ports. */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { runCommand, UsageError } from "../cli/command.ts";
import { startKafka } from "../kafka/cluster.ts";
import { createTopics } from "../kafka/topics.ts";
import { ROOT } from "../project/functions.ts";

const PORT = 9092;
const USAGE = `Usage: npm run kafka -- [--brokers 1|3] [--port ${PORT}]`;

/** @throws {UsageError} with a sentence, for a flag or a value that is not known */
export function readFlags(args: readonly string[]): { brokers: 1 | 3; port: number } {
  let values: { brokers?: string; port?: string };
  try {
    values = parseArgs({ args: [...args], options: { brokers: { type: "string" }, port: { type: "string" } } }).values;
  } catch (error) {
    throw new UsageError(`${(error as Error).message.split(". ")[0]}. ${USAGE}`);
  }
  const { brokers = "1", port = String(PORT) } = values;
  if (brokers !== "1" && brokers !== "3") throw new UsageError(`--brokers must be 1 or 3; ${brokers} is not. ${USAGE}`);
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65533) {
    throw new UsageError(`--port must be a whole number from 1 to 65533; ${port} is not. ${USAGE}`);
  }
  return { brokers: brokers === "3" ? 3 : 1, port: Number(port) };
}

async function main(): Promise<void> {
  const flags = readFlags(process.argv.slice(2));
  if (process.env.KAFKA_BROKERS) {
    throw new Error(`KAFKA_BROKERS names a Kafka already: ${process.env.KAFKA_BROKERS}. Unset it to run one here.`);
  }
  const began = performance.now();
  const kafka = await startKafka({
    ...flags,
    folder: join(ROOT, ".lotus", "kafka", `brokers-${flags.brokers}`),
    onProgress: (line) => console.log(line),
  });
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`Kafka serves at ${kafka.bootstrap.join(",")} (after ${seconds} s). Ctrl-C ends it.`);
  console.log(`For programs: KAFKA_BROKERS=${kafka.bootstrap.join(",")}`);
  const made = await createTopics(kafka.bootstrap);
  if (made.length > 0) console.log(`Made the topics ${made.join(" and ")}.`);
  let stopping = false;
  const stop = () => {
    if (stopping) return;
    stopping = true;
    void kafka.stop().then(() => process.exit());
  };
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
}

if (process.argv[1] === import.meta.filename) runCommand(main);
