/** What Linux says of a process, in /proc. */
import { readFile } from "node:fs/promises";

/** The most memory that a process has had resident so far, in MiB. */
export async function memoryPeakMebibytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1024;
}

/** The processor time that a process has used, in milliseconds; Linux counts it in hundredths of a second. */
export async function processorMilliseconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10;
}
