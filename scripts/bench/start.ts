/** Measures time and CPU of `npm start` and `npm run build`, each in a new process. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { ROOT } from "../project/paths.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";

export const about = "the first and the second start of Lotus until it answers, and an unchanged build";

const FIRST_START_SECONDS_MAX = 6;
const SECOND_START_SECONDS_MAX = 2.5;
const BUILD_SECONDS_MAX = 1.6;

/** Runs a command of Lotus. Returns the child and its line that matches. @throws {Error} when it ends without that line */
async function runUntil(node: string, args: readonly string[], line: RegExp) {
  const child = spawn(node, [join(ROOT, "scripts/lotus.mjs"), ...args], {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "inherit"],
  });
  for await (const text of createInterface({ input: child.stdout })) {
    const match = line.exec(text);
    if (match !== null) {
      child.stdout.resume();
      return { child, match };
    }
  }
  throw new Error(`lotus ${args.join(" ")} ended before it printed ${line}`);
}

/** Starts Lotus in a folder and sends one request. Returns the seconds until its answer. */
async function startOnce(node: string, folder: string): Promise<number> {
  const began = performance.now();
  const { child, match } = await runUntil(
    node,
    ["start", "--port", "0", "--quiet", "--folder", folder],
    /^Lotus is at (\S+)/,
  );
  const answer = await fetch(`${match[1]}/order/subscriptions`);
  await answer.text();
  const seconds = (performance.now() - began) / 1_000;
  const closed = once(child, "close");
  child.kill("SIGTERM");
  await closed;
  if (!answer.ok) throw new Error(`GET /order/subscriptions answered ${answer.status}`);
  return seconds;
}

async function buildOnce(node: string): Promise<number> {
  const began = performance.now();
  const { child } = await runUntil(node, ["build"], /^Built 0 functions/);
  if (child.exitCode === null) await once(child, "close");
  return (performance.now() - began) / 1_000;
}

export default async function startBench({ node, rounds }: BenchOptions): Promise<Figure[]> {
  const first: number[] = [];
  const second: number[] = [];
  const build: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const folder = await mkdtemp(join(tmpdir(), "lotus-bench-"));
    try {
      first.push(await startOnce(node, folder));
      second.push(await startOnce(node, folder));
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
    build.push(await buildOnce(node));
  }
  const most = (max: number) => [{ of: "lotus", max } as const];
  return [
    { what: "first start to first answer, s", lotus: first, digits: 1, targets: most(FIRST_START_SECONDS_MAX) },
    { what: "second start to first answer, s", lotus: second, digits: 1, targets: most(SECOND_START_SECONDS_MAX) },
    { what: "unchanged build, s", lotus: build, digits: 1, targets: most(BUILD_SECONDS_MAX) },
  ];
}
