/** Fits the cluster's own Postgres to the functions: `max_connections`, and the memory that the connections need. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { connectionsOf } from "../database/connections.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { backendsOf } from "./backends.ts";
import { LAPTOP, readEnvironment } from "./environment.ts";
import { budgetIn } from "./plan.ts";

const FILE = "knative/platform/postgres.yaml";
/** Postgres reserves these connections for superusers. */
export const RESERVED_CONNECTIONS = 3;
/** Private memory of a backend, measured: 3.4 MB. */
export const BACKEND_MEBIBYTES = 4;
/** For the server's other processes. */
export const RESERVE_MEBIBYTES = 128;

/**
 * Returns the manifest with room for connections. It raises `max_connections` to the next hundred, and the memory limit with it.
 * @param needed the connections that everything together may open
 */
export function withRoomFor(needed: number, manifest: string): string {
  const [, now] = /max_connections=(\d+)/.exec(manifest) ?? [];
  const [, shared] = /shared_buffers=(\d+)MB/.exec(manifest) ?? [];
  const [, gibibytes] = /limits: \{ memory: (\d+)Gi \}/.exec(manifest) ?? [];
  if (now === undefined || shared === undefined || gibibytes === undefined)
    throw new Error(`${FILE} has no max_connections, shared_buffers or memory limit`);
  if (needed + RESERVED_CONNECTIONS <= Number(now)) return manifest;
  const connections = Math.ceil((needed + RESERVED_CONNECTIONS) / 100) * 100;
  const mebibytes = Number(shared) + connections * BACKEND_MEBIBYTES + RESERVE_MEBIBYTES;
  const memory = Math.max(Number(gibibytes), Math.ceil(mebibytes / 1024));
  return manifest
    .replace(/max_connections=\d+/, `max_connections=${connections}`)
    .replace(/limits: \{ memory: \d+Gi \}/, `limits: { memory: ${memory}Gi }`);
}

/** Raises the limits of knative/platform/postgres.yaml when the functions need more. Returns the files that were written. */
export async function fitPostgres(): Promise<string[]> {
  const all = await findFunctions();
  const environment = await readEnvironment(
    LAPTOP,
    all.map(({ name }) => name),
  );
  const needed = connectionsOf(budgetIn({ all, environment, backends: backendsOf(environment) }));
  const manifest = await readFile(join(ROOT, FILE), "utf8");
  const fitted = withRoomFor(needed, manifest);
  if (fitted === manifest) return [];
  await writeFile(join(ROOT, FILE), fitted);
  return [FILE];
}
