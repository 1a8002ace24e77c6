/** A Lotus of a bench's own, with a Kafka of its own behind it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Client } from "pg";
import type { Kafka } from "../kafka/broker.ts";
import { type Lotus, startLotus } from "../local/lotus.ts";

export interface BenchLotus extends Lotus {
  readonly kafka: Kafka;
  /** Connected to its database as the owner. */
  readonly database: Client;
}

/** Starts one in a folder of its own, does the work, and leaves nothing behind. */
export async function withKafkaLotus(work: (lotus: BenchLotus) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-bench-"));
  try {
    const lotus = await startLotus({ port: 0, folder, kafka: true });
    try {
      const { kafka } = lotus;
      if (kafka === undefined) throw new Error("Lotus has started without Kafka.");
      const database = new Client({ connectionString: lotus.adminUrl });
      await database.connect();
      await work({ ...lotus, kafka, database }).finally(() => database.end());
    } finally {
      await lotus.stop();
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * Whole numbers above 0 that a bench is told by flags, such as --rounds 9.
 * @throws {Error} a sentence, for a flag that is not known or a value that is no such number
 */
export function readNumbers<Name extends string>(
  args: readonly string[],
  defaults: Readonly<Record<Name, number>>,
): Record<Name, number> {
  const names = Object.keys(defaults) as Name[];
  const options = Object.fromEntries(names.map((name) => [name, { type: "string" as const }]));
  const { values } = parseArgs({ args: [...args], options });
  const read = names.map((name) => {
    const value = Number(values[name] ?? defaults[name]);
    if (!Number.isInteger(value) || value < 1) throw new Error(`--${name} must be a whole number above 0.`);
    return [name, value] as const;
  });
  return Object.fromEntries(read) as Record<Name, number>;
}

/** The process of a function, which must be running. */
export function processOf(lotus: Lotus, name: string): number {
  const pid = lotus.functions.get(name)?.running?.child.pid;
  if (pid === undefined) throw new Error(`The function ${name} has no process.`);
  return pid;
}
