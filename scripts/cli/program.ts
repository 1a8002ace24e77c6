/** Runs the program `lotus`: finds the command and runs it. */
import { COMMANDS, GROUPS } from "../commands/index.ts";
import { exitCodeOf, UsageError } from "./errors.ts";
import { didYouMean } from "./nearest.ts";
import { print } from "./output.ts";
import { asksForHelp, runSingleCommand } from "./single.ts";

function listCommands(): string {
  const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length));
  const groups = GROUPS.map((group) => {
    const lines = Object.entries(COMMANDS)
      .filter(([, entry]) => entry.group === group)
      .map(([name, { about }]) => `  ${name.padEnd(width)}  ${about}`);
    return `${group}\n${lines.join("\n")}`;
  });
  return `Usage: lotus COMMAND [options]\n\n${groups.join("\n\n")}\n\nHelp of one command: npx lotus COMMAND --help`;
}

/** Runs the command that the arguments name. */
export async function runProgram([name, ...args]: readonly string[]): Promise<void> {
  if (name === undefined || name === "help" || asksForHelp([name])) return print(listCommands());
  const entry = COMMANDS[name];
  if (entry === undefined) {
    console.error(`lotus has no command ${name}.${didYouMean(name, Object.keys(COMMANDS))} See: npx lotus --help`);
    process.exit(exitCodeOf(new UsageError()));
  }
  await runSingleCommand(name, await entry.load(), args);
}
