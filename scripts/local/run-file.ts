/** One run a folder: a file in it says who runs there, and where, for as long as that is so. */
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, link, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

const ATTEMPTS_MAX = 10;
/** Where there are no hard links, the file is made and written in two steps. */
const WRITING_MILLISECONDS_MAX = 1_000;
const WRITING_LOOK_MILLISECONDS = 50;

export interface RunFile {
  /** Writes down where the gateway is; undefined when it is no more. */
  setUrl(url: string | undefined): Promise<void>;
  /** The folder is free again. */
  remove(): Promise<void>;
}

interface Run {
  readonly pid: number;
  readonly url?: string;
}

const fileOf = (folder: string) => join(folder, "run.json");

/** The folders that this very process runs in: the number of its process may be that of one that is gone. */
const ours = new Set<string>();

function parse(text: string): Run | undefined {
  try {
    return JSON.parse(text) as Run;
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

function answers(url: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1");
    socket.once("connect", () => socket.end(() => resolve(true)));
    socket.once("error", () => resolve(false));
  });
}

/** A process of that number may be another by now, after a restart of the machine: one that serves nothing where it should. */
async function runs({ pid, url }: Run, folder: string): Promise<boolean> {
  if (pid === process.pid) return ours.has(folder);
  return isAlive(pid) && (url === undefined || answers(url));
}

/** Where Lotus is that runs in a folder; undefined when none does. */
export async function urlOfRun(folder: string): Promise<string | undefined> {
  return parse(await readFile(fileOf(folder), "utf8").catch(() => ""))?.url;
}

/** What the file says, once it is whole; or after a while, what is left of it. */
async function readWhole(file: string): Promise<string> {
  for (let waited = 0; ; waited += WRITING_LOOK_MILLISECONDS) {
    const text = await readFile(file, "utf8").catch(() => "");
    if (parse(text) !== undefined || waited >= WRITING_MILLISECONDS_MAX) return text;
    await delay(WRITING_LOOK_MILLISECONDS);
  }
}

/** Removes the file that says just that. Another one, which somebody has put in its place meanwhile, stays. */
async function removeStale(file: string, text: string): Promise<void> {
  const aside = `${file}.${randomUUID()}`;
  try {
    await rename(file, aside);
  } catch {
    // Somebody else has removed it.
    return;
  }
  if ((await readFile(aside, "utf8")) !== text)
    await copyFile(aside, file, constants.COPYFILE_EXCL).catch(() => undefined);
  await rm(aside, { force: true });
}

/** Makes a file that is there whole or not at all. Rejects with EEXIST when there is one already. */
async function create(file: string, text: string): Promise<void> {
  const written = `${file}.${randomUUID()}`;
  await writeFile(written, text);
  try {
    await link(written, file);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") throw error;
    await writeFile(file, text, { flag: "wx" });
  } finally {
    await rm(written, { force: true });
  }
}

/**
 * Takes a folder for this run: two in one folder would stop each other's database.
 * @throws {Error} a sentence, when somebody else runs there
 */
export async function takeFolder(given: string): Promise<RunFile> {
  const folder = resolve(given);
  await mkdir(folder, { recursive: true });
  const file = fileOf(folder);
  const textOf = (url?: string) => JSON.stringify({ pid: process.pid, url });
  for (let attempt = 1; ; attempt++) {
    try {
      await create(file, textOf());
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    const text = await readWhole(file);
    const run = parse(text);
    if (attempt === ATTEMPTS_MAX || (run !== undefined && (await runs(run, folder)))) {
      const where = run?.url === undefined ? "" : `, at ${run.url}`;
      throw new Error(
        `Lotus runs here already${where} (process ${run?.pid}). Stop that one first, with Ctrl-C in its terminal. If there is no such Lotus, remove ${file}.`,
      );
    }
    await removeStale(file, text);
  }
  ours.add(folder);
  return {
    async setUrl(url) {
      // At once: whoever reads it meanwhile reads the one or the other.
      const written = `${file}.${process.pid}`;
      await writeFile(written, textOf(url));
      await rename(written, file);
    },
    async remove() {
      ours.delete(folder);
      await rm(file, { force: true });
    },
  };
}
