/** Prints: lines, and steps with their progress and time. */
import { paint } from "./text.ts";

const PROGRESS_MILLISECONDS = 5_000;

/** Whether a step has begun a line that its time will end. */
let unended = false;

/** Prints a line. */
export function print(text: string): void {
  if (unended) process.stdout.write("\n");
  unended = false;
  console.log(text);
}

/** Prints a value as JSON for programs. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/**
 * Runs a step that may take a while. Prints its name at once, its progress every five seconds, and its time at the end.
 * @param work receives a function that reports the progress; the last report follows the time
 */
export async function step<T>(what: string, work: (report: (progress: string) => void) => Promise<T>): Promise<T> {
  const began = performance.now();
  const seconds = () => paint("dim", `${((performance.now() - began) / 1000).toFixed(1)} s`);
  let progress = "";
  process.stdout.write(`  ${what} …`);
  unended = true;
  const timer = setInterval(() => {
    if (progress !== "") print(`    ${seconds()}: ${progress}`);
  }, PROGRESS_MILLISECONDS).unref();
  try {
    const result = await work((text) => {
      progress = text;
    });
    const end = `${seconds()}${progress && `: ${progress}`}`;
    process.stdout.write(unended ? ` ${end}\n` : `  ${what}: ${end}\n`);
    unended = false;
    return result;
  } catch (error) {
    if (unended) process.stdout.write("\n");
    unended = false;
    throw error;
  } finally {
    clearInterval(timer);
  }
}
