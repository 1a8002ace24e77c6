/** One run a folder: a file in it says who runs there, and where, for as long as that is so. */
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { join } from "node:path";

const ATTEMPTS_MAX = 3;

export interface RunFile {
  /** Writes down where the gateway is; undefined while it is not, or not any more. */
  tell(url: string | undefined): Promise<void>;
  /** The folder is free again. */
  remove(): Promise<void>;
}

interface Run {
  readonly pid: number;
  readonly url?: string;
}

const fileOf = (folder: string) => join(folder, "run.json");

async function read(folder: string): Promise<Run | undefined> {
  try {
    return JSON.parse(await readFile(fileOf(folder), "utf8")) as Run;
  } catch {
    // Not there, or cut off by whatever ended the run that wrote it.
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
async function runs({ pid, url }: Run): Promise<boolean> {
  return isAlive(pid) && (url === undefined || answers(url));
}

/** Where Lotus is that runs in a folder; undefined when none does. */
export async function urlOfRun(folder: string): Promise<string | undefined> {
  return (await read(folder))?.url;
}

/**
 * Takes a folder for this run: two in one folder would stop each other's database.
 * @throws {Error} a sentence, when somebody else runs there
 */
export async function takeFolder(folder: string): Promise<RunFile> {
  await mkdir(folder, { recursive: true });
  const file = fileOf(folder);
  const text = (url?: string) => JSON.stringify({ pid: process.pid, url });
  for (let attempt = 1; ; attempt++) {
    try {
      await writeFile(file, text(), { flag: "wx" });
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      const run = await read(folder);
      if (attempt === ATTEMPTS_MAX || (run !== undefined && (await runs(run)))) {
        const where = run?.url === undefined ? "" : `, at ${run.url}`;
        throw new Error(
          `Lotus runs here already${where} (process ${run?.pid}). Stop that one first, with Ctrl-C in its terminal. If there is no such Lotus, remove ${file}.`,
        );
      }
      await rm(file, { force: true });
    }
  }
  return {
    tell: (url) => writeFile(file, text(url)),
    remove: () => rm(file, { force: true }),
  };
}
