/** The signals that end a program: Ctrl-C, SIGTERM, the end of its terminal, the end of npm. */
import { readFileSync } from "node:fs";
import { isAlive } from "./child.ts";
import { runText } from "./run.ts";

const SIGNALS = { SIGINT: "Ctrl-C", SIGTERM: "SIGTERM", SIGHUP: "SIGHUP" } as const;
const PARENT_POLL_MILLISECONDS = 500;
const ANCESTORS_MAX = 3;

/**
 * Calls `stop` at the first signal and `force` at the second one.
 * @param stop receives the name of the signal, such as Ctrl-C
 * @returns a function that removes the handlers
 */
export function onStopSignal(stop: (why: string) => void, force: () => void): () => void {
  let signals = 0;
  const handlers = Object.entries(SIGNALS).map(([signal, why]) => {
    const handle = () => {
      signals++;
      if (signals === 1) stop(why);
      else force();
    };
    process.on(signal, handle);
    return () => process.removeListener(signal, handle);
  });
  return () => {
    for (const remove of handlers) remove();
  };
}

async function parentOf(pid: number): Promise<number> {
  try {
    return Number(/^PPid:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
  } catch {
    return Number((await runText(["ps", "-o", "ppid=", "-p", String(pid)]))?.trim() ?? 0);
  }
}

/**
 * Calls `ended` when the npm that started this process has ended. A signal such as SIGKILL ends npm and not its script.
 * Does not watch a process that npm did not start, nor on Windows.
 */
export async function watchNpm(ended: () => void): Promise<() => void> {
  if (process.env.npm_lifecycle_event === undefined || process.platform === "win32") return () => undefined;
  const ancestors = [process.ppid];
  // npm runs a script through a shell, which may or may not be replaced by the script.
  while (ancestors.length < ANCESTORS_MAX) {
    const last = ancestors.at(-1) ?? 0;
    if (last <= 1) break;
    const title = await runText(["ps", "-o", "args=", "-p", String(last)]);
    if (title === undefined || /\bp?npm\b|yarn/.test(title.split(" ").slice(0, 2).join(" "))) break;
    ancestors.push(await parentOf(last));
  }
  const watched = ancestors.filter((pid) => pid > 1);
  const timer = setInterval(() => {
    if (watched.every(isAlive)) return;
    clearInterval(timer);
    ended();
  }, PARENT_POLL_MILLISECONDS).unref();
  return () => clearInterval(timer);
}
