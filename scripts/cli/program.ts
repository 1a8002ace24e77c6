/** Runs the program `lotus`: finds the command and runs it. */
import type { Command } from "./command.ts";
import { exitCodeOf, UsageError } from "./errors.ts";
import { didYouMean } from "./nearest.ts";
import { print } from "./output.ts";
import { asksForHelp, runSingleCommand } from "./single.ts";

/** A command in the list. It is loaded when it is called. */
export interface Entry {
  readonly group: string;
  /** One line of the list. */
  readonly about: string;
  load(): Promise<Command>;
}

/** The commands by their names, in the order of the list. */
export type Commands = Readonly<Record<string, Entry>>;

function listCommands(commands: Commands): string {
  const width = Math.max(...Object.keys(commands).map((name) => name.length));
  const groups = [...new Set(Object.values(commands).map(({ group }) => group))].map((group) => {
    const lines = Object.entries(commands)
      .filter(([, entry]) => entry.group === group)
      .map(([name, { about }]) => `  ${name.padEnd(width)}  ${about}`);
    return `${group}\n${lines.join("\n")}`;
  });
  return `Usage: lotus COMMAND [options]\n\n${groups.join("\n\n")}\n\nHelp of one command: npx lotus COMMAND --help`;
}

/** Runs the command that the arguments name. */
export async function runProgram(commands: Commands, [name, ...args]: readonly string[]): Promise<void> {
  if (name === undefined || name === "help" || asksForHelp([name])) return print(listCommands(commands));
  const entry = commands[name];
  if (entry === undefined) {
    console.error(`lotus has no command ${name}.${didYouMean(name, Object.keys(commands))} See: npx lotus --help`);
    process.exit(exitCodeOf(new UsageError()));
  }
  await runSingleCommand(name, await entry.load(), args);
}
