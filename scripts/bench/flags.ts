/** What every bench hears from its command line: its flags, and Ctrl-C. */
import { accessSync, constants } from "node:fs";
import { parseArgs } from "node:util";
import { UsageError } from "../cli/command.ts";

/**
 * Whole numbers above 0 that a bench is told by flags, such as --rounds 9, and by --node the Node that runs what it measures.
 * @throws {UsageError} a sentence, for a flag that is not known or a value that cannot be
 */
export function readFlags<Name extends string>(
  args: readonly string[],
  defaults: Readonly<Record<Name, number>>,
): Record<Name, number> & { readonly node: string } {
  const names = Object.keys(defaults) as Name[];
  const text = { type: "string" as const };
  const options = { node: text, ...Object.fromEntries(names.map((name) => [name, text])) };
  const { values } = parseArgs({ args: [...args], options });
  const { node = process.execPath } = values;
  try {
    accessSync(node, constants.X_OK);
  } catch {
    throw new UsageError(`--node must be the path of a Node; ${node} is no program.`);
  }
  const read = names.map((name) => {
    const value = Number((values as Record<string, string | undefined>)[name] ?? defaults[name]);
    if (!Number.isInteger(value) || value < 1) throw new UsageError(`--${name} must be a whole number above 0.`);
    return [name, value] as const;
  });
  return { ...(Object.fromEntries(read) as Record<Name, number>), node };
}

/** Runs what needs ending, and ends it: when it is over, when it fails, and at Ctrl-C. */
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
