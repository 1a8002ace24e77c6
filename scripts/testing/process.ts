/** Memory and CPU time of processes, from Linux's /proc. */
import { readdir, readFile } from "node:fs/promises";

/** Returns the most memory that a process has had resident so far, in MiB. */
export async function memoryPeakMebibytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
}

interface Stat {
  readonly parent: number;
  /** User and system time, in milliseconds. Linux counts it in hundredths of a second. */
  readonly milliseconds: number;
  /** The same for children that have ended. */
  readonly endedMilliseconds: number;
}

/** Reads /proc/PID/stat (proc(5)). */
async function readStat(pid: number | string): Promise<Stat> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  const [parent = 0, user = 0, system = 0, endedUser = 0, endedSystem = 0] = [1, 11, 12, 13, 14].map((n) => fields[n]);
  return { parent, milliseconds: (user + system) * 10, endedMilliseconds: (endedUser + endedSystem) * 10 };
}

/** Returns the CPU time that a process has used, in milliseconds. */
export async function processorMilliseconds(pid: number): Promise<number> {
  return (await readStat(pid)).milliseconds;
}

/** Returns the CPU time of the threads of a process, in milliseconds, from the nanoseconds of /proc/PID/task/TID/schedstat. */
export async function threadMilliseconds(pid: number): Promise<number> {
  const threads = await readdir(`/proc/${pid}/task`);
  const texts = await Promise.all(
    threads.map((thread) => readFile(`/proc/${pid}/task/${thread}/schedstat`, "utf8").catch(() => "0")),
  );
  return texts.reduce((sum, text) => sum + Number(text.split(" ", 1)[0]), 0) / 1_000_000;
}

/** Returns the CPU time that a process and its children have used, in milliseconds: all of Postgres, given its first process. */
export async function treeProcessorMilliseconds(pid: number): Promise<number> {
  const processes = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  // A process may end between the two reads; its time is then in `endedMilliseconds` of its parent.
  const stats = await Promise.all(processes.map((process) => readStat(process).catch(() => undefined)));
  const children = stats.filter((stat) => stat?.parent === pid);
  const own = await readStat(pid);
  return children.reduce((sum, child) => sum + (child?.milliseconds ?? 0), own.milliseconds + own.endedMilliseconds);
}
