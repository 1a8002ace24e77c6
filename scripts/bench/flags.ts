/** The flags of a bench, and its end: at Ctrl-C, a bench stops the processes that it started. */
import { execFileSync } from "node:child_process";
import { accessSync, constants } from "node:fs";
import type { Option } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { readCount } from "../cli/options.ts";

/** The images run it (knative/images/Dockerfile). */
const NODE_DEFAULT = "24";

/** How a row is measured. */
export interface BenchOptions {
  /** Path of the Node that runs all sides. */
  readonly node: string;
  readonly nodeMajor: number;
  /** Measurements of each side, in alternation. */
  readonly rounds: number;
  /** Duration of one measurement. */
  readonly seconds: number;
}

/** Finds a Node of a version: this process's Node, or one that npm downloads once into its cache. */
function findNode(version: string): string {
  if (process.versions.node.startsWith(`${version}.`)) return process.execPath;
  const command = ["exec", "--yes", `--package=node@${version}`, "--", "node", "-p", "process.execPath"];
  try {
    return execFileSync("npm", command, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
  } catch (error) {
    const reason = (error as Error).message.split("\n").slice(0, 3).join(" ");
    throw new Error(
      `npm did not fetch Node ${version}: ${reason}. Measure with this Node: --node ${process.versions.node.split(".")[0]}.`,
    );
  }
}

/** The options of `lotus bench`. */
export const BENCH_OPTIONS = {
  node: { type: "string", value: "NODE", about: "a major version, or the path of a Node", default: NODE_DEFAULT },
  rounds: { type: "string", value: "N", about: "measurements of each side, in alternation", default: "5" },
  seconds: { type: "string", value: "N", about: "duration of one measurement", default: "2" },
} as const satisfies Readonly<Record<string, Option>>;

const COUNT_MAX = 10_000;

/**
 * Reads the values of BENCH_OPTIONS.
 * @throws {UsageError} with a sentence, for a wrong value
 */
export function readFlags(values: Readonly<Record<keyof typeof BENCH_OPTIONS, string>>): BenchOptions {
  const read = (name: "rounds" | "seconds") => readCount(name, values[name], 1, COUNT_MAX);
  const given = values.node;
  const node = /^\d+$/.test(given) ? findNode(given) : given;
  try {
    accessSync(node, constants.X_OK);
  } catch {
    throw new UsageError(`--node must be a major version or the path of a Node; ${node} is neither.`);
  }
  const nodeMajor = Number(execFileSync(node, ["-p", "process.versions.node.split('.')[0]"], { encoding: "utf8" }));
  return { node, nodeMajor, rounds: read("rounds"), seconds: read("seconds") };
}

/** Runs a measurement, and stops its processes at its end, after a failure, and at Ctrl-C. */
export async function ending<T>(stop: () => Promise<unknown>, work: () => Promise<T>): Promise<T> {
  let stopped: Promise<unknown> | undefined;
  const stopOnce = () => {
    stopped ??= stop();
    return stopped;
  };
  const interrupt = () => void stopOnce().finally(() => process.exit(130));
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, interrupt);
  try {
    return await work();
  } finally {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.removeListener(signal, interrupt);
    await stopOnce();
  }
}
