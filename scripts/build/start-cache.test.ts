import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterEach, beforeEach, describe, expect, inject, it } from "vitest";
import { ROOT } from "../project/paths.ts";
import { eventually } from "../testing/lotus.ts";
import { bundleOf, programOf } from "./bundles.ts";

/** A function that needs no database. */
const NAME = "profile-jwks";
let folder: string;
let environment: NodeJS.ProcessEnv;
const processes: ChildProcess[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-loader-"));
  for (const file of [programOf(NAME), bundleOf(NAME)]) await cp(file, join(folder, basename(file)));
  const keys = join(inject("secrets"), "public-keys", "jwks.json");
  environment = { PATH: process.env.PATH, PORT: "0", JWKS_FILE: keys };
});
afterEach(async () => {
  for (const child of processes.splice(0)) child.kill("SIGKILL");
  await rm(folder, { recursive: true, force: true });
});

/** Starts the function, calls it, and stops it. Resolves to the status of the answer and the exit code. */
async function run(execArgv: string[] = []): Promise<[status: number, exitCode: number]> {
  const child = fork(join(folder, basename(programOf(NAME))), [], { env: environment, execArgv, silent: true });
  processes.push(child);
  const ended = once(child, "exit");
  const [{ port }] = await once(child, "message");
  const { status } = await fetch(`http://127.0.0.1:${port}/profile/jwks`, { headers: { connection: "close" } });
  child.kill("SIGTERM");
  const [code] = await ended;
  return [status, code];
}

const kept = async () => (await readdir(folder)).filter((file) => file.includes(".cache"));

describe("the file that starts a function", () => {
  it("stores the code that V8 compiled when the process ends, and later processes start with it", async () => {
    expect(await kept()).toEqual([]);
    expect(await run()).toEqual([200, 0]);
    const [file = "", ...others] = await kept();
    expect(others).toEqual([]);
    expect(file).toMatch(new RegExp(`^${NAME}\\.[0-9a-f]{16}\\.${process.version}-${process.arch}\\.cache$`));
    // A process that starts with the cache does not write the file again.
    const { mtimeMs, ino } = await stat(join(folder, file));
    expect(await run()).toEqual([200, 0]);
    expect(await stat(join(folder, file))).toMatchObject({ mtimeMs, ino });
  });

  it("stores the code of the start, also when the process ran long enough for V8 to drop it", async () => {
    const size = async () => (await stat(join(folder, (await kept())[0] ?? ""))).size;
    const old = join(folder, "old.cjs");
    const flags = ["--max-old-space-size=48", "--require", old];
    await writeFile(old, "");
    expect(await run(flags)).toEqual([200, 0]);
    const young = await size();
    for (const file of await kept()) await rm(join(folder, file));
    // V8 counts a function's age in collections of its old space.
    const litter = "let kept; for (let n = 0; n < 250; n++) kept = Array.from({ length: 100_000 }, (_, i) => ({ i }));";
    await writeFile(old, `process.on("SIGTERM", () => { ${litter} });`);
    expect(await run(flags)).toEqual([200, 0]);
    expect((await size()) / young).toBeGreaterThan(0.98);
    expect((await size()) / young).toBeLessThan(1.02);
  });

  it.each([
    ["damaged", (data: Buffer) => data.map((byte, index) => (index % 1_000 === 999 ? byte ^ 255 : byte))],
    ["cut off", (data: Buffer) => data.subarray(0, data.length - 100)],
    ["empty", (data: Buffer) => data.subarray(0, 0)],
  ])("starts without what is %s, and replaces it", async (_, spoil) => {
    await run();
    const [file = ""] = await kept();
    const good = await readFile(join(folder, file));
    const spoilt = spoil(good);
    await writeFile(join(folder, file), spoilt);
    expect(await run()).toEqual([200, 0]);
    const replaced = await readFile(join(folder, file));
    expect(replaced.equals(spoilt)).toBe(false);
    expect(replaced.length).toBeGreaterThan(good.length / 2);
  });

  it("starts where it cannot store a cache, and leaves no file behind", async () => {
    await run();
    const [file = ""] = await kept();
    await rm(join(folder, file));
    // A folder has the name of the cache file, because root may write everywhere.
    await mkdir(join(folder, file, "in-the-way"), { recursive: true });
    expect(await run()).toEqual([200, 0]);
    expect(await kept()).toEqual([file]);
  });

  it("stores no cache of a process that failed", async () => {
    environment.JWKS_FILE = "";
    const child = fork(join(folder, basename(programOf(NAME))), [], { env: environment, execArgv: [], silent: true });
    expect(await once(child, "exit")).toEqual([1, null]);
    expect(await kept()).toEqual([]);
  });

  it("is served by the functions framework's own command line as well", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    await new Promise((resolve) => server.close(resolve));
    const command = join(ROOT, "node_modules/.bin/functions-framework");
    const child = spawn(command, [`--source=${programOf(NAME)}`, `--target=${NAME}`, `--port=${port}`], {
      env: environment,
      stdio: "ignore",
    });
    processes.push(child);
    const answer = await eventually("the framework answers", () =>
      fetch(`http://127.0.0.1:${port}/profile/jwks`).catch(() => undefined),
    );
    expect([answer.status, Object.keys((await answer.json()) as object)]).toEqual([200, ["keys"]]);
  });
});
