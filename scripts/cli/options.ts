/** Options that mean the same in every command, and how their values are read. */
import { join, resolve } from "node:path";
import * as v from "valibot";
import { Origins } from "#kernel/settings";
import { ROOT } from "../project/paths.ts";
import type { Option } from "./command.ts";
import { UsageError } from "./errors.ts";

/** The folder of a run: data, passwords, keys, and the address of the running Lotus. */
export const folder = {
  type: "string",
  value: "FOLDER",
  about: "the folder of the run (default .lotus)",
} as const satisfies Option;

export const database = {
  type: "string",
  value: "URL",
  about: "the Postgres, as its owner: postgres://owner:password@host:port/name",
} as const satisfies Option;

export const url = {
  type: "string",
  value: "URL",
  about: "the HTTP address of Lotus (default: the Lotus that runs in the folder)",
} as const satisfies Option;

export const brokers = {
  type: "string",
  value: "HOSTS",
  about: "the Kafka brokers, host:port,… (default KAFKA_BROKERS)",
} as const satisfies Option;

export const cors = {
  type: "string",
  value: "ORIGINS",
  about: "pages of these origins may call Lotus, such as http://localhost:3000,…",
} as const satisfies Option;

export const json = {
  type: "boolean",
  about: "print JSON for programs",
} as const satisfies Option;

/** Returns the absolute path of `--folder`. A relative path starts where the command was called. */
export function readFolder(text: string | undefined): string {
  if (text === undefined) return join(ROOT, ".lotus");
  if (text === "") throw new UsageError("--folder must name a folder.");
  return resolve(text);
}

/** Returns the origins of `--cors`. @throws {UsageError} when one is not written as browsers write it */
export function readOrigins(text: string): string[] {
  const result = v.safeParse(Origins, text);
  if (result.success) return result.output;
  throw new UsageError(`--cors must be ${result.issues[0].message}; "${text}" is not.`);
}

/** Returns the whole number of an option. @throws {UsageError} when it is outside the limits */
export function readCount(option: string, text: string, least: number, most: number): number {
  const count = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
  if (count >= least && count <= most) return count;
  throw new UsageError(`--${option} must be a whole number from ${least} to ${most}; "${text}" is not.`);
}

/** Returns one of the allowed values. @throws {UsageError} for another value */
export function readChoice<T extends string>(option: string, text: string, allowed: readonly T[]): T {
  if ((allowed as readonly string[]).includes(text)) return text as T;
  throw new UsageError(`--${option} must be ${allowed.join(" or ")}; "${text}" is not.`);
}
