/** Starts a separate Lotus and a separate Kafka for a benchmark. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import type { Kafka } from "../kafka/cluster.ts";
import { type Lotus, startLotus } from "../local/lotus.ts";
import { ending } from "./flags.ts";

export interface BenchLotus extends Lotus {
  readonly kafka: Kafka;
  /** Connected to its database as the owner. */
  readonly database: Client;
}

/** Starts a Lotus with Kafka in a new folder, does the work, and removes both. */
export async function withKafkaLotus<T>(work: (lotus: BenchLotus) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-bench-"));
  const lotus = await startLotus({ port: 0, folder, kafka: true });
  const database = new Client({ connectionString: lotus.adminUrl });
  const stop = async () => {
    await database.end();
    await lotus.stop();
    await rm(folder, { recursive: true, force: true });
  };
  return ending(stop, async () => {
    await database.connect();
    const { kafka } = lotus;
    if (kafka === undefined) throw new Error("Lotus has started without Kafka.");
    return work({ ...lotus, kafka, database });
  });
}

/** The process of a function, which must be running. */
export function processOf(lotus: Lotus, name: string): number {
  const pid = lotus.functions.get(name)?.running?.child.pid;
  if (pid === undefined) throw new Error(`The function ${name} has no process.`);
  return pid;
}
