/** Runs one command: shows its help, prints its errors and sets the exit code. */
import { type Command, helpOf } from "./command.ts";
import { describeError, exitCodeOf } from "./errors.ts";
import { print } from "./output.ts";

/** Whether the arguments contain --help or -h. */
export function asksForHelp(args: readonly string[]): boolean {
  const end = args.indexOf("--");
  return (end === -1 ? args : args.slice(0, end)).some((arg) => arg === "--help" || arg === "-h");
}

/** Runs one command with its arguments. Sets the exit code of the process, and prints an error. */
export async function runSingleCommand(name: string, command: Command, args: readonly string[]): Promise<void> {
  try {
    if (asksForHelp(args)) print(helpOf(name, command));
    else await command.run(name, args);
  } catch (error) {
    console.error(describeError(error));
    process.exit(exitCodeOf(error));
  }
}
