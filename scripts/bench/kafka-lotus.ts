/** A Lotus of a bench's own, with a Kafka of its own behind it, and what /proc says of its processes. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
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

/** The most memory that a process has had resident, and what it has now, in MiB. */
export async function memoryOf(pid: number): Promise<{ most: number; now: number }> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  const mebibytes = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(status)?.[1]) / 1024;
  return { most: mebibytes("VmHWM"), now: mebibytes("VmRSS") };
}

/** The processor time that a process has used, in milliseconds; Linux counts it in hundredths of a second. */
export async function processorMillisecondsOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
