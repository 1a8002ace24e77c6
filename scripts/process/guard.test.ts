import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ROOT, TYPESCRIPT } from "../project/paths.ts";
import { eventually } from "../testing/lotus.ts";
import { isAlive } from "./child.ts";

let folder: string;
const children: ChildProcess[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-guard-"));
});
afterEach(async () => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
  await rm(folder, { recursive: true, force: true });
});

/** Starts a parent that starts a child which ignores signals, and reports the child's process number. */
async function startParent(lastSignal: string): Promise<{ parent: ChildProcess; child: number }> {
  const program = `
    import { spawn } from "node:child_process";
    import { guardChild } from ${JSON.stringify(join(ROOT, "scripts/process/guard.ts"))};
    const child = spawn(process.execPath, ["-e", "process.on('SIGTERM', () => {}); setInterval(() => {}, 1000)"], {
      detached: true,
      stdio: "ignore",
    });
    guardChild(child, ${JSON.stringify(lastSignal)});
    process.on("SIGUSR2", () => process.exit(0));
    process.send(child.pid);
    setInterval(() => {}, 1000);`;
  const file = join(folder, "parent.mts");
  await writeFile(file, program);
  const parent = fork(file, { execArgv: ["--import", TYPESCRIPT] });
  children.push(parent);
  const [child] = await once(parent, "message");
  return { parent, child };
}

describe.skipIf(process.platform === "win32")("a guarded child", () => {
  it.each([
    ["SIGKILL", "KILL"],
    ["SIGKILL", "INT"],
    ["SIGUSR2", "KILL"],
    ["SIGTERM", "KILL"],
  ] as const)("ends when its parent ends by %s (last signal %s)", async (signal, last) => {
    const { parent, child } = await startParent(last);
    expect(isAlive(child)).toBe(true);
    parent.kill(signal);
    await eventually("the child has ended", () => !isAlive(child));
  });
});
