/** A lock between processes: a file that exists while one of them works. */
import { randomUUID } from "node:crypto";
import { readFile, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";

const LOCK_WAIT_MILLISECONDS_MAX = 10_000;
/** A waiting process tries again after a random part of this time. */
const LOCK_STEP_MILLISECONDS_MAX = 20;

const Owner = v.object({ host: v.string(), pid: v.number() });

async function createExclusively(file: string, text: string): Promise<boolean> {
  try {
    // O_EXCL: of several processes, one creates the file.
    await writeFile(file, text, { flag: "wx", mode: 0o600 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function ownerOf(text: string): v.InferOutput<typeof Owner> | undefined {
  try {
    return v.parse(Owner, JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** Whether the process that wrote this lock has ended. False for a lock of another machine and for an incomplete lock file. */
function hasEnded(text: string): boolean {
  const owner = ownerOf(text);
  if (owner === undefined || owner.host !== hostname()) return false;
  try {
    process.kill(owner.pid, 0);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ESRCH";
  }
}

/**
 * Removes the lock of a process that has ended. A second lock guards this step: without it, two waiting processes could each
 * remove a lock, the second one that of the first.
 */
async function removeEnded(file: string, own: string): Promise<void> {
  const guard = `${file}.removal`;
  if (!(await createExclusively(guard, own))) return;
  try {
    if (hasEnded(await readFile(file, "utf8").catch(() => ""))) await rm(file, { force: true });
  } finally {
    await rm(guard, { force: true });
  }
}

/**
 * Runs `work` while this process holds the lock. Other callers of the same file, in any process, wait for their turn.
 * @param file is created for the time of `work`; its folder must exist
 * @throws {Error} a sentence that names the file, when the lock is not free within LOCK_WAIT_MILLISECONDS_MAX
 */
export async function withLock<T>(file: string, work: () => Promise<T>): Promise<T> {
  const own = JSON.stringify({ host: hostname(), pid: process.pid, id: randomUUID() });
  const until = performance.now() + LOCK_WAIT_MILLISECONDS_MAX;
  while (!(await createExclusively(file, own))) {
    const text = await readFile(file, "utf8").catch(() => "");
    if (hasEnded(text)) await removeEnded(file, own);
    if (performance.now() > until) {
      const owner = ownerOf(text);
      const who = owner === undefined ? "Another process" : `Process ${owner.pid} on ${owner.host}`;
      throw new Error(`${who} holds the lock ${file}. If no such process runs, remove that file and try again.`);
    }
    await delay(Math.random() * LOCK_STEP_MILLISECONDS_MAX);
  }
  try {
    return await work();
  } finally {
    await rm(file, { force: true });
  }
}
