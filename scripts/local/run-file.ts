/** The file `run.json` of a folder: which process runs there, and at which addresses. Only one Lotus runs in a folder. */
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, link, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Refusal } from "../cli/errors.ts";
import { isAlive } from "../process/child.ts";

const ATTEMPTS_MAX = 10;
/** Without hard links the file is created and written in two steps. */
const WRITING_MILLISECONDS_MAX = 1_000;
const WRITING_LOOK_MILLISECONDS = 50;

/** Only its owner reads the file: it contains the secret of the control channel. */
const MODE = 0o600;

/** The addresses of a run. */
export interface Addresses {
  /** The gateway. */
  readonly url?: string;
  /** The control channel, on loopback. */
  readonly control?: { readonly url: string; readonly secret: string };
  /** The brokers, in a run with Kafka. */
  readonly kafka?: { readonly bootstrap: readonly string[] };
}

/** One run, as its file describes it. */
export interface Run extends Addresses {
  readonly pid: number;
}

export interface RunFile {
  /** Writes the addresses of the run. */
  publish(addresses: Addresses): Promise<void>;
  /** Removes the file: the folder is free again. */
  remove(): Promise<void>;
}

const fileOf = (folder: string) => join(folder, "run.json");

/** The folders of runs in this process. A file of an earlier process may contain the same process number. */
const ours = new Set<string>();

function parse(text: string): Run | undefined {
  try {
    return JSON.parse(text) as Run;
  } catch {
    return undefined;
  }
}

function answers(url: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1");
    socket.once("connect", () => socket.end(() => resolve(true)));
    socket.once("error", () => resolve(false));
  });
}

/** After a restart of the machine, another process may have the number of the run. Then its address does not answer. */
async function runs({ pid, url }: Run, folder: string): Promise<boolean> {
  if (pid === process.pid) return ours.has(folder);
  return isAlive(pid) && (url === undefined || answers(url));
}

/** Returns the Lotus that runs in a folder; undefined when none does. */
export async function runOf(folder: string): Promise<Run | undefined> {
  const run = parse(await readFile(fileOf(resolve(folder)), "utf8").catch(() => ""));
  return run !== undefined && isAlive(run.pid) ? run : undefined;
}

/** Returns the text of the file when it is complete, or its content after a time limit. */
async function readWhole(file: string): Promise<string> {
  for (let waited = 0; ; waited += WRITING_LOOK_MILLISECONDS) {
    const text = await readFile(file, "utf8").catch(() => "");
    if (parse(text) !== undefined || waited >= WRITING_MILLISECONDS_MAX) return text;
    await delay(WRITING_LOOK_MILLISECONDS);
  }
}

/** Removes the file with this text. Keeps a file that another process wrote meanwhile. */
async function removeStale(file: string, text: string): Promise<void> {
  const aside = `${file}.${randomUUID()}`;
  try {
    await rename(file, aside);
  } catch {
    // Another process removed it.
    return;
  }
  if ((await readFile(aside, "utf8")) !== text)
    await copyFile(aside, file, constants.COPYFILE_EXCL).catch(() => undefined);
  await rm(aside, { force: true });
}

/** Creates a file with its content in one step. Rejects with EEXIST when the file exists. */
async function create(file: string, text: string): Promise<void> {
  const written = `${file}.${randomUUID()}`;
  await writeFile(written, text, { mode: MODE });
  try {
    await link(written, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") throw error;
    await writeFile(file, text, { flag: "wx", mode: MODE });
  } finally {
    await rm(written, { force: true });
  }
}

/**
 * Takes a folder for this run. Two runs in one folder would stop each other's database.
 * @throws {Refusal} when another Lotus runs in the folder
 */
export async function takeFolder(given: string): Promise<RunFile> {
  const folder = resolve(given);
  await mkdir(folder, { recursive: true });
  const file = fileOf(folder);
  const textOf = (addresses: Addresses) => JSON.stringify({ pid: process.pid, ...addresses });
  for (let attempt = 1; ; attempt++) {
    try {
      await create(file, textOf({}));
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const text = await readWhole(file);
    const run = parse(text);
    if (attempt === ATTEMPTS_MAX || (run !== undefined && (await runs(run, folder)))) {
      const where = run?.url === undefined ? "" : `, at ${run.url}`;
      throw new Refusal(
        `Lotus runs here already${where} (process ${run?.pid}). Stop it first: npx lotus stop. If no such Lotus exists, remove ${file}.`,
      );
    }
    await removeStale(file, text);
  }
  ours.add(folder);
  return {
    async publish(addresses) {
      // The rename is atomic: a reader reads the old or the new text.
      const written = `${file}.${process.pid}`;
      await writeFile(written, textOf(addresses), { mode: MODE });
      await rename(written, file);
    },
    async remove() {
      ours.delete(folder);
      await rm(file, { force: true });
    },
  };
}
