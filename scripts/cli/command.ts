/** How the commands end. */

/** The command line is wrong: which flag or word, and what was expected. */
export class UsageError extends Error {}

/** What an error says. One that stands for several, as of a name with two addresses, has no words of its own. */
export function messageOf(error: unknown): string {
  const { message, code, errors } = error as { message?: string; code?: unknown; errors?: readonly unknown[] };
  return message || (errors?.[0] === undefined ? String(code ?? error) : messageOf(errors[0]));
}

/**
 * Runs a command's main. An error ends it with exit code 1, a wrong command line with 2.
 * @param sentence what a person reads of an error
 */
export function runCommand(main: () => Promise<void>, sentence: (error: Error) => string = messageOf): void {
  main().catch((error: Error & { code?: unknown }) => {
    console.error(sentence(error));
    const isUsage = error instanceof UsageError || String(error.code).startsWith("ERR_PARSE_ARGS");
    process.exit(isUsage ? 2 : 1);
  });
}
