/** Serves edits in `lotus dev`: builds functions, writes generated files, migrates, and checks types in the background. */
import { join } from "node:path";
import { buildFunctions } from "../build/bundles.ts";
import { watchProject } from "../build/watch.ts";
import { attempt } from "../process/run.ts";
import { PROGRAM, ROOT } from "../project/paths.ts";
import type { FunctionProcess } from "./function-process.ts";

const TSC = join(ROOT, "node_modules/typescript/bin/tsc");

/** The running Lotus, as far as an edit changes it. */
export interface Edited {
  readonly functions: ReadonlyMap<string, FunctionProcess>;
  readonly adminUrl: string;
  /** The folder of the roles' passwords. */
  readonly secrets: string;
  onNews(name: string, news: string): void;
  /** Reads the manifests again: adds and removes functions and routes. Returns the names of added functions. */
  apply(): Promise<string[]>;
}

const textOf = ({ stdout, stderr }: { stdout: string; stderr: string }) => `${stdout}${stderr}`.trim();

/** Checks the types of the project, one check at a time. A new check ends the previous one. */
class TypeCheck {
  readonly #onNews: Edited["onNews"];
  #running = new AbortController();
  #clean = true;

  constructor(onNews: Edited["onNews"]) {
    this.#onNews = onNews;
  }

  async run(): Promise<void> {
    this.#running.abort();
    this.#running = new AbortController();
    const { signal } = this.#running;
    const ended = await attempt(process.execPath, [TSC, "-p", ROOT, "--pretty", "false"], { signal });
    if (signal.aborted) return;
    if (ended.code !== 0) this.#onNews("types", textOf(ended));
    else if (!this.#clean) this.#onNews("types", "no errors");
    this.#clean = ended.code === 0;
  }

  stop(): void {
    this.#running.abort();
  }
}

/** Serves edits until `stop`. */
export async function serveEdits({ functions, adminUrl, secrets, onNews, apply }: Edited): Promise<{
  stop(): Promise<void>;
}> {
  const types = new TypeCheck(onNews);
  const env = { DATABASE_ADMIN_URL: adminUrl };

  const migrate = async (files: readonly string[]) => {
    const ended = await attempt(process.execPath, [PROGRAM, "migrate", "--secrets", secrets], { env });
    onNews("migrate", `${files.join(", ")}: ${textOf(ended)}`);
  };

  const buildOne = async (name: string) => {
    const { failed } = await buildFunctions([name]);
    const errors = failed.get(name);
    if (errors === undefined) return;
    onNews(name, `does not compile.\n${errors}`);
    throw new Error(errors);
  };

  // The descriptions are read by another process: this one has imported the files already.
  const generate = async () => {
    const ended = await attempt(process.execPath, [PROGRAM, "generate", "--json"]);
    if (ended.code !== 0) return onNews("generate", textOf(ended));
    const { written } = JSON.parse(ended.stdout) as { written: string[] };
    if (written.length === 0) return;
    const added = await apply();
    onNews("generate", `wrote ${written.join(", ")}`);
    for (const name of added) {
      functions.get(name)?.replaceAfter(() => buildOne(name));
      onNews(name, "is served now");
    }
    if (written.some((file) => file.startsWith("knative/sources/"))) await migrate(["subscriptions"]);
  };

  // One step at a time: a migration must not read an incomplete file of the generator.
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = (name: string, work: () => Promise<unknown>) => {
    last = last.then(work).catch((error: Error) => onNews(name, error.message));
  };

  const watching = await watchProject({
    functions(names, build) {
      for (const name of names) functions.get(name)?.replaceAfter(() => build(name));
    },
    built(name, errors) {
      onNews(name, errors === "" ? "built" : `does not compile; the previous code keeps running.\n${errors}`);
    },
    sources() {
      inTurn("generate", generate);
      void types.run();
    },
    schema: (files) => inTurn("migrate", () => migrate(files)),
    restart: (file) => onNews("dev", `${file} changed. Stop Lotus with Ctrl-C and start it again to use it.`),
  });
  return {
    async stop() {
      types.stop();
      await watching.stop();
      await last;
    },
  };
}
