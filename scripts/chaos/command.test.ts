/** `npm run chaos` as a program: its exit code and its output. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { attempt } from "../process/run.ts";
import { PROGRAM } from "../project/paths.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-chaos-command-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

it("ends a run with a violation with exit code 1, and names the invariant, the user, the operations and the seed", async () => {
  const report = join(folder, "report.html");
  const flags = ["--sabotage", "wrong-balance", "--faults", "", "--minutes", "0.01", "--operations", "200"];
  const args = [PROGRAM, "chaos", "--seed", "7", ...flags, "--report", report, "--log", join(folder, "lotus.log")];
  const ended = await attempt(process.execPath, args);
  expect(ended.code, ended.stdout + ended.stderr).toBe(1);
  const [, user] =
    /^reads: User (\S+) read the balance [\d.]+, which the account did not have after its entry \d+\.$/m.exec(
      ended.stdout,
    ) ?? [];
  expect(user, ended.stdout).toBeDefined();
  expect(ended.stdout).toContain(`The operations of user ${user}:`);
  expect(ended.stdout).toMatch(/^ {2}\d+\.\d{3} s to \d+\.\d{3} s, client \d: read-balance: 200, balance [\d.]+$/m);
  expect(ended.stdout).toMatch(/^Repeat the run: npm run chaos -- --seed 7 .*--sabotage wrong-balance$/m);
  expect(await readFile(report, "utf8")).toContain("reads: User");
});
