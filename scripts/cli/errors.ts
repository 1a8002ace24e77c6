/** Errors that a person reads, and the exit code of each. */

/** Exit codes of every command: done, failed, wrong usage, ended by a second Ctrl-C. */
export const EXIT_CODES = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** An expected failure. Its message says what failed, why, and what to do. */
export class Refusal extends Error {}

/** A wrong command line. Its message names the option or the argument, and what the command accepts. */
export class UsageError extends Refusal {}

/** Errors of the JavaScript engine. They mean a defect in the program. */
const PROGRAMMING_ERRORS = [TypeError, ReferenceError, RangeError, SyntaxError, EvalError];

/** Returns the message of an error. An AggregateError, as of a host with two addresses, has the message of its first error. */
export function messageOf(error: unknown): string {
  const { message, code, errors } = error as { message?: string; code?: unknown; errors?: readonly unknown[] };
  return message || (errors?.[0] === undefined ? String(code ?? error) : messageOf(errors[0]));
}

/** Whether an error is a mistake in the program. A failed `fetch` is a TypeError whose cause has a system error code. */
function isProgrammingError(error: unknown): boolean {
  if (!(error instanceof Error)) return true;
  if (error instanceof Refusal || "code" in error) return false;
  if (error.cause !== undefined && (error.cause as { code?: unknown }).code !== undefined) return false;
  return PROGRAMMING_ERRORS.some((kind) => error instanceof kind) || error.name === "AssertionError";
}

/** Returns a system error as a sentence with a remedy, and any other error as its message. */
export function sentenceOf(error: unknown): string {
  const { code, path } = error as NodeJS.ErrnoException;
  const where = path === undefined ? "" : ` ${path}`;
  if (error instanceof Refusal) return error.message;
  if (code === "EACCES" || code === "EPERM")
    return `Permission denied:${where || ` ${messageOf(error)}`}. Change its permissions, or choose another --folder.`;
  if (code === "ENOTDIR" || code === "EEXIST")
    return `A file is in the place of a folder:${where}. Choose another --folder.`;
  if (code === "EROFS") return `The disk is read-only:${where}. Choose another --folder.`;
  if (code === "ENOSPC") return "The disk is full. Free some space and try again.";
  return messageOf(error);
}

/** Returns the text of an error for a person: the message of an expected failure, or the stack of a defect. */
export function describeError(error: unknown): string {
  if (!isProgrammingError(error)) return sentenceOf(error);
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** Returns the exit code of an error. */
export function exitCodeOf(error: unknown): number {
  return error instanceof UsageError ? EXIT_CODES.usage : EXIT_CODES.failed;
}
