/**
 * Ends child processes when this process ends, however it ends. A small shell reads the list of children from a pipe; the end of
 * the pipe means that this process has ended. Windows has no such shell: there a function ends when its IPC channel closes.
 */
import { type ChildProcess, spawn } from "node:child_process";
import type { Writable } from "node:stream";

/** The signal that ends a child whose parent has ended. Postgres shuts down cleanly on SIGINT. */
export type LastSignal = "KILL" | "INT";

/** After SIGINT a Postgres gets this long; then SIGQUIT ends it and its backends at once. */
const GRACE_SECONDS = 10;

const SCRIPT = `
trap '' INT TERM HUP
children=
while read -r sign pid signal; do
  if [ "$sign" = + ]; then children="$children $pid:$signal"; continue; fi
  rest=
  for child in $children; do [ "\${child%%:*}" = "$pid" ] || rest="$rest $child"; done
  children=$rest
done
asked=
for child in $children; do
  kill -s "\${child#*:}" "\${child%%:*}" 2>/dev/null || continue
  [ "\${child#*:}" = KILL ] || asked="$asked \${child%%:*}"
done
[ -n "$asked" ] || exit 0
for second in $(seq ${GRACE_SECONDS}); do
  sleep 1
  kill -s 0 $asked 2>/dev/null || exit 0
done
kill -s QUIT $asked 2>/dev/null
`;

let guard: Writable | undefined;

function pipe(): Writable {
  if (guard !== undefined) return guard;
  // Detached: a signal to the process group of this process does not reach it.
  const shell = spawn("sh", ["-c", SCRIPT], { detached: true, stdio: ["pipe", "ignore", "ignore"], cwd: "/" });
  shell.unref();
  (shell.stdin as Writable & { unref(): void }).unref();
  shell.on("error", () => undefined);
  // A guard that was killed is started again for the next child.
  shell.stdin.on("error", () => {
    guard = undefined;
  });
  guard = shell.stdin;
  return guard;
}

/**
 * Registers a child.
 * @param lastSignal ends the child when this process has ended
 */
export function guardChild(child: ChildProcess, lastSignal: LastSignal = "KILL"): void {
  const { pid } = child;
  if (process.platform === "win32" || pid === undefined) return;
  pipe().write(`+ ${pid} ${lastSignal}\n`);
  child.once("exit", () => pipe().write(`- ${pid}\n`));
}
