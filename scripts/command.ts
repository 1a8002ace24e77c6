/** How the commands end. */

/** The command line is wrong: which flag or word, and what was expected. */
export class UsageError extends Error {}

/**
 * Runs a command's main. An error ends it with exit code 1, a wrong command line with 2.
 * @param sentence what a person reads of an error
 */
export function runCommand(
  main: () => Promise<void>,
  sentence = (error: NodeJS.ErrnoException): string => error.message,
): void {
  main().catch((error: NodeJS.ErrnoException) => {
    console.error(sentence(error));
    const isUsage = error instanceof UsageError || error.code?.startsWith("ERR_PARSE_ARGS");
    process.exit(isUsage ? 2 : 1);
  });
}
