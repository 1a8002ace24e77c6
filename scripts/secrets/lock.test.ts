import { spawnSync } from "node:child_process";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { withLock } from "./lock.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-lock-"));
});
afterEach(async () => {
  vi.restoreAllMocks();
  await rm(folder, { recursive: true, force: true });
});

const file = () => join(folder, "lock");
/** The number of a process that has ended. */
const ended = () => spawnSync(process.execPath, ["--version"]).pid;

describe("a lock", () => {
  it("lets one caller work at a time, and is removed afterwards", async () => {
    let working = 0;
    const results = await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        withLock(file(), async () => {
          expect(++working).toBe(1);
          await new Promise((resolve) => setImmediate(resolve));
          working--;
          return n;
        }),
      ),
    );
    expect(results).toEqual(Array.from({ length: 20 }, (_, n) => n));
    expect(await readdir(folder)).toEqual([]);
  });

  it("is free again when the work fails", async () => {
    await expect(withLock(file(), () => Promise.reject(new Error("failed")))).rejects.toThrow("failed");
    expect(await withLock(file(), async () => 1)).toBe(1);
  });

  it("is taken over when its process has ended, by one caller at a time", async () => {
    for (let round = 0; round < 10; round++) {
      await writeFile(file(), JSON.stringify({ host: hostname(), pid: ended() }));
      let working = 0;
      const work = async () => {
        expect(++working).toBe(1);
        await new Promise((resolve) => setImmediate(resolve));
        working--;
      };
      await Promise.all([withLock(file(), work), withLock(file(), work), withLock(file(), work)]);
      expect(await readdir(folder)).toEqual([]);
    }
  });

  it.each([
    ["a running process", () => JSON.stringify({ host: hostname(), pid: process.ppid }), "Process "],
    ["another machine", () => JSON.stringify({ host: "elsewhere", pid: ended() }), "Process \\d+ on elsewhere"],
    ["a process that wrote only a part", () => "{", "Another process"],
  ])("of %s is kept; the error names its file", async (_, text, owner) => {
    await writeFile(file(), text());
    // Each reading of the clock is a second later, so that the wait ends soon.
    let now = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (now += 1_000));
    const refused = withLock(file(), async () => "not reached");
    await expect(refused).rejects.toThrow(
      new RegExp(`^${owner}.* holds the lock ${file()}\\. If no such process runs`),
    );
    expect(await readdir(folder)).toEqual(["lock"]);
  });
});
