/** Each sabotage of Lotus must end a chaos run with a violation that names the invariant. A run without a sabotage finds no violation. */
import { randomUUID } from "node:crypto";
import { chmod, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import { describe, expect, inject, it } from "vitest";
import { rolesOf } from "../database/roles.ts";
import { FAULTS } from "./faults.ts";
import type { Report } from "./report.ts";
import { runChaos } from "./run.ts";
import { SABOTAGES, type Sabotage } from "./sabotage.ts";

const SEED = 1;
const CLIENTS = 8;
const MINUTES = 0.05;
const OPERATIONS_MIN = 150;
/** Includes the wait for a place. */
const MILLISECONDS_MAX = 600_000;
/** A sabotage may make every repetition of a call fail. */
const REPEAT_MILLISECONDS_MAX = 1_000;
/** A sabotage may leave events in the outbox for good. */
const SABOTAGED_SETTLE_MILLISECONDS_MAX = 3_000;
/** Runs at the same time. Each starts a process for each function. */
const RUNS_AT_A_TIME = 3;
/** This sabotage changes the server, so its run starts a Postgres. */
const OWN_SERVER = "answer-before-commit";

const queue: Promise<unknown>[] = Array.from({ length: RUNS_AT_A_TIME }, () => Promise.resolve());
let turns = 0;
/** Runs work when one of the places is free. */
function inTurn<T>(work: () => Promise<T>): Promise<T> {
  const place = turns++ % RUNS_AT_A_TIME;
  const done = (queue[place] as Promise<unknown>).then(work);
  queue[place] = done.catch(() => undefined);
  return done;
}

async function onServer(...statements: string[]): Promise<void> {
  const client = new Client({ connectionString: inject("templateUrl").replace(/\/lotus$/, "/postgres") });
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}

/** Runs chaos for some seconds in a new database. */
async function chaos(sabotage?: Sabotage): Promise<Report> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-chaos-test-"));
  await chmod(folder, 0o711);
  const name = `chaos_${randomUUID().replaceAll("-", "")}`;
  const isOwn = sabotage?.name === OWN_SERVER;
  if (!isOwn) await onServer(`create database ${name}`);
  const adminUrl = inject("templateUrl").replace(/\/lotus$/, `/${name}`);
  try {
    return await runChaos({
      seed: SEED,
      minutes: MINUTES,
      clients: CLIENTS,
      faults: sabotage === undefined ? FAULTS : FAULTS.filter((fault) => sabotage.faults.includes(fault.name)),
      overlap: 3,
      kafka: false,
      ...(!isOwn && { database: { adminUrl } }),
      folder,
      historyFile: join(folder, "history.jsonl"),
      logFile: join(folder, "lotus.log"),
      ...(sabotage !== undefined && {
        sabotage,
        settleMillisecondsMax: SABOTAGED_SETTLE_MILLISECONDS_MAX,
        repeatMillisecondsMax: REPEAT_MILLISECONDS_MAX,
      }),
      operationsMin: OPERATIONS_MIN,
      built: true,
      onProgress: () => undefined,
      interrupted: new AbortController().signal,
    });
  } finally {
    if (!isOwn)
      await onServer(
        `drop database ${name} with (force)`,
        `drop role if exists ${[...rolesOf(name).values()].join(", ")}`,
      );
    await rm(folder, { recursive: true, force: true });
  }
}

describe.concurrent("chaos", { timeout: MILLISECONDS_MAX }, () => {
  it("finds no violation in Lotus", async () => {
    const { violations, operations, injections } = await inTurn(() => chaos());
    expect(violations).toEqual([]);
    expect(operations).toBeGreaterThan(0);
    expect(injections.length).toBeGreaterThan(0);
  });

  it.each(SABOTAGES.map((sabotage) => [sabotage.name, sabotage] as const))("finds %s", async (_, sabotage) => {
    const { violations } = await inTurn(() => chaos(sabotage));
    const named = [...new Set(violations.map(({ invariant }) => invariant))];
    expect(sabotage.violates.filter((invariant) => named.includes(invariant))).not.toEqual([]);
  });
});
