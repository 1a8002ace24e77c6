/** Watches the checkout for `lotus dev`: builds changed functions, and reports every other change. */
import { type FSWatcher, statSync, watch } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { ROOT } from "../project/paths.ts";
import { buildFunctions, builtInputs, endEsbuild } from "./bundles.ts";

/** An editor writes a file in several steps; they become one change. */
const SETTLE_MILLISECONDS = 20;
const WATCHED = ["functions", "triggers", "scripts", "knative", "."];
const IGNORED = /(?:^|\/)(?:node_modules|dist|\.[^/]+)(?:\/|$)|~$|\.new$/;
/** Files that `lotus generate` writes. */
const GENERATED = /^knative\/(?:functions|sources)\/|^knative\/routes\.yaml$/;

/** Receives the changes. */
export interface Changes {
  /** The code of these functions changed. `build` builds one of them and rejects when it does not compile. */
  functions(names: readonly string[], build: (name: string) => Promise<void>): void;
  /** A build ended; `errors` has code frames, and is empty when the function compiles. */
  built(name: string, errors: string): void;
  /** TypeScript of functions/ or triggers/ changed: descriptions, and with them the generated files, may be stale. */
  sources(files: readonly string[]): void;
  /** SQL files changed. */
  schema(files: readonly string[]): void;
  /** A change that a running Lotus cannot serve. */
  restart(file: string): void;
}

/** A watcher per folder: Node's recursive watchers on Linux lose a file that an editor replaced. */
class Folders {
  readonly #watchers = new Map<string, FSWatcher>();
  readonly #changed: (file: string) => void;

  constructor(changed: (file: string) => void) {
    this.#changed = changed;
  }

  /** Watches a folder and, unless it is the checkout itself, every folder below it. */
  async add(folder: string): Promise<void> {
    const isFolder = statSync(join(ROOT, folder), { throwIfNoEntry: false })?.isDirectory() === true;
    if (!isFolder || this.#watchers.has(folder) || IGNORED.test(folder)) return;
    const watcher = watch(join(ROOT, folder), (_, name) => {
      if (name !== null) this.#changed(join(folder, name).replaceAll("\\", "/"));
    });
    // A folder that was removed ends its watcher.
    watcher.on("error", () => this.#watchers.delete(folder));
    this.#watchers.set(folder, watcher);
    if (folder === ".") return;
    const entries = await readdir(join(ROOT, folder), { withFileTypes: true }).catch(() => []);
    await Promise.all(entries.filter((entry) => entry.isDirectory()).map(({ name }) => this.add(`${folder}/${name}`)));
  }

  close(): void {
    for (const watcher of this.#watchers.values()) watcher.close();
  }
}

/** Builds changed functions one after the other. */
class Builder {
  /** The builds that have not begun. They read every edit up to now. */
  readonly #waiting = new Map<string, Promise<void>>();
  readonly #errors = new Map<string, string>();
  readonly #changes: Changes;
  #last: Promise<unknown> = Promise.resolve();

  constructor(changes: Changes) {
    this.#changes = changes;
  }

  /** Resolves when the code that was on disk at the call is built. */
  fresh = (name: string): Promise<void> => {
    const waiting = this.#waiting.get(name);
    if (waiting !== undefined) return waiting;
    const build = this.#last.then(() => {
      this.#waiting.delete(name);
      return this.#build(name);
    });
    this.#waiting.set(name, build);
    this.#last = build.catch(() => undefined);
    return build;
  };

  async #build(name: string): Promise<void> {
    const { changed, failed } = await buildFunctions([name]);
    const errors = failed.get(name) ?? "";
    const isNews = changed.length > 0 || errors !== (this.#errors.get(name) ?? "");
    this.#errors.set(name, errors);
    if (isNews) this.#changes.built(name, errors);
    if (errors !== "") throw new Error(errors);
  }
}

/**
 * Watches until `stop`. Edits are built at the next request of a function, and in the background.
 * @returns when every watcher is ready
 */
export async function watchProject(changes: Changes): Promise<{ stop(): Promise<void> }> {
  const waiting = new Set<string>();
  const builder = new Builder(changes);
  let stopped = false;

  const handle = async () => {
    const files = [...waiting];
    waiting.clear();
    if (stopped) return;
    const isSource = (file: string) => /^(?:functions|triggers)\/.*\.ts$/.test(file) && !file.endsWith(".test.ts");
    const sources = files.filter(isSource);
    const schema = files.filter((file) => /^functions\/.*\.sql$/.test(file));
    const other = files.find(
      (file) =>
        /^(?:scripts\/.*\.(?:ts|mjs)|knative\/.*\.yaml|package\.json|tsconfig\.json)$/.test(file) &&
        !file.endsWith(".test.ts") &&
        !GENERATED.test(file),
    );
    if (schema.length > 0) changes.schema(schema);
    if (other !== undefined) changes.restart(other);
    if (sources.length === 0) return;
    const affected = [...(await builtInputs())]
      .filter(([, inputs]) => sources.some((file) => inputs.has(file)))
      .map(([name]) => name);
    changes.functions(affected, builder.fresh);
    changes.sources(sources);
    // One after the other, so that the build for a request waits for one other build at most.
    for (const name of affected) if (!stopped) await builder.fresh(name).catch(() => undefined);
  };

  const folders = new Folders((file) => {
    if (IGNORED.test(file)) return;
    if (!/\.[a-z]+$/.test(file)) void folders.add(file);
    if (waiting.size === 0) setTimeout(() => void handle(), SETTLE_MILLISECONDS);
    waiting.add(file);
  });
  await Promise.all(WATCHED.map((folder) => folders.add(folder)));
  return {
    async stop() {
      stopped = true;
      folders.close();
      await endEsbuild();
    },
  };
}
