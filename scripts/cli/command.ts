/** Describes one command of the program `lotus`: its options, its arguments and its help. */
import { parseArgs } from "node:util";
import { UsageError } from "./errors.ts";
import { didYouMean } from "./nearest.ts";

/** One option. An option of type boolean is a switch and is false by default. */
export interface Option {
  readonly type: "string" | "boolean";
  /** One line of the help. */
  readonly about: string;
  /** The placeholder of a string's value in the help, such as FOLDER. */
  readonly value?: string;
  readonly default?: string;
  /** The value of a string option without a value, as in `--inspect`. */
  readonly implied?: string;
}

type Options = Readonly<Record<string, Option>>;

type Values<O extends Options> = {
  readonly [Name in keyof O]: O[Name]["type"] extends "boolean"
    ? boolean
    : O[Name] extends { readonly default: string }
      ? string
      : string | undefined;
};

/** A command as the program runs it. */
export interface Command {
  /** One sentence that describes the command. */
  readonly about: string;
  /** Positional arguments in the help, such as `[FUNCTION…]`. Absent: the command accepts none. */
  readonly usage?: string;
  /** Paragraphs below the options in the help. */
  readonly notes?: string;
  readonly options: Options;
  /** Reads the options and runs. @throws {UsageError} for a wrong command line */
  run(name: string, args: readonly string[]): Promise<void>;
}

interface Description<O extends Options> {
  readonly about: string;
  readonly usage?: string;
  readonly notes?: string;
  readonly options: O;
  run(values: Values<O>, positionals: readonly string[]): Promise<void>;
}

/**
 * Defines a command. `--help` prints the help and ignores all other arguments.
 * @param description the options with one line of help each, and the work
 */
export function command<const O extends Options>(description: Description<O>): Command {
  const { about, usage, notes, options } = description;
  return {
    about,
    options,
    ...(usage !== undefined && { usage }),
    ...(notes !== undefined && { notes }),
    async run(name, args) {
      const { values, positionals } = read(name, args, options, usage !== undefined);
      await description.run(values as Values<O>, positionals);
    },
  };
}

function read(name: string, args: readonly string[], options: Options, allowPositionals: boolean) {
  const config = Object.fromEntries(
    Object.entries(options).map(([option, { type, default: value }]) => [
      option,
      { type, default: value ?? (type === "boolean" ? false : undefined) },
    ]),
  ) as Record<string, { type: "string" | "boolean" }>;
  const help = `See: npx lotus ${name} --help`;
  const whole = args.map((arg) => {
    const implied = options[arg.slice(2)]?.implied;
    return arg.startsWith("--") && implied !== undefined ? `${arg}=${implied}` : arg;
  });
  try {
    return parseArgs({ args: whole, options: config, allowPositionals });
  } catch (error) {
    const { code, message } = error as Error & { code?: string };
    const unknown = /^Unknown option '-*([^']*)'/.exec(message)?.[1];
    if (unknown !== undefined) {
      const known = Object.keys(options).map((option) => `--${option}`);
      throw new UsageError(`lotus ${name} has no option --${unknown}.${didYouMean(`--${unknown}`, known)} ${help}`);
    }
    if (code === "ERR_PARSE_ARGS_UNEXPECTED_POSITIONAL") {
      const extra = /'([^']*)'/.exec(message)?.[1] ?? "";
      throw new UsageError(`lotus ${name} accepts no argument; "${extra}" is one. ${help}`);
    }
    if (!String(code).startsWith("ERR_PARSE_ARGS")) throw error;
    throw new UsageError(`${message.split(/\.\s/)[0]}. ${help}`);
  }
}

/** Returns the help of a command. */
export function helpOf(name: string, { about, usage, notes, options }: Command): string {
  const rows = Object.entries({ ...options, help: { type: "boolean", about: "show this help" } as Option }).map(
    ([option, { value, about: line, default: preset, implied }]) =>
      [
        `--${option}${value === undefined ? "" : implied === undefined ? ` ${value}` : `[=${value}]`}`,
        preset ? `${line} (default ${preset})` : line,
      ] as const,
  );
  const width = Math.max(...rows.map(([left]) => left.length));
  const lines = rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`);
  return [
    `Usage: lotus ${name} [options]${usage === undefined ? "" : ` ${usage}`}`,
    `\n${about}\n`,
    ...lines,
    ...(notes === undefined ? [] : [`\n${notes}`]),
  ].join("\n");
}
