/** Ends child processes within a time limit, and after the end of their parent. */
import type { ChildProcess } from "node:child_process";

export { guardChild, type LastSignal } from "./guard.ts";

/** How a process ended, as words: `with exit code 1` or `by SIGKILL`. */
export function describeEnd(code: number | null, signal: NodeJS.Signals | null): string {
  return signal === null ? `with exit code ${code}` : `by ${signal}`;
}

/** Whether a child has ended. */
export function hasEnded({ exitCode, signalCode, pid }: ChildProcess): boolean {
  return exitCode !== null || signalCode !== null || pid === undefined;
}

/** Resolves when a child has ended; at once when it has. */
function untilEnded(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return Promise.resolve();
  return new Promise((resolve) => {
    child.once("exit", () => resolve());
    child.once("error", () => resolve());
  });
}

/** Sends a signal, and a second one when the child still runs after a time. Resolves when it has ended. */
export async function endChild(
  child: ChildProcess,
  signal: NodeJS.Signals,
  millisecondsMax: number,
  lastSignal: NodeJS.Signals = "SIGKILL",
): Promise<void> {
  if (hasEnded(child)) return;
  const ended = untilEnded(child);
  const late = setTimeout(() => child.kill(lastSignal), millisecondsMax);
  child.kill(signal);
  await ended;
  clearTimeout(late);
}

/** Whether a process with this number runs. Another user's process counts as well. */
export function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Sends a signal to a process that may have ended. */
export function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}
