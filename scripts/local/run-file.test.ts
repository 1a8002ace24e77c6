import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { ROOT, TYPESCRIPT } from "../project/paths.ts";
import { runOf, takeFolder } from "./run-file.ts";

const FOLDERS = 100;
/** Takes each named folder, and prints the folders that it got. */
const PROGRAM = `
  import { takeFolder } from ${JSON.stringify(join(ROOT, "scripts/local/run-file.ts"))};
  process.send("ready");
  process.on("message", async (folders) => {
    const got = [];
    for (const folder of folders) await takeFolder(folder).then(() => got.push(folder), () => undefined);
    process.send(got);
  });`;
let folder: string;
const children: ChildProcess[] = [];
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-run-file-"));
  await writeFile(join(folder, "take.mts"), PROGRAM);
});
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function taker(): Promise<ChildProcess> {
  const child = fork(join(folder, "take.mts"), { execArgv: ["--import", TYPESCRIPT] });
  children.push(child);
  await once(child, "message");
  return child;
}

it.each([
  ["no Lotus has run", undefined],
  ["a run was killed", '{"pid":999999999,"url":"http://localhost:1"}'],
])("of two processes that take a folder at the same time, where %s, one gets it", async (_, left) => {
  const folders = await Promise.all(Array.from({ length: FOLDERS }, () => mkdtemp(join(folder, "run-"))));
  if (left !== undefined) for (const each of folders) await writeFile(join(each, "run.json"), left);
  const takers = await Promise.all([taker(), taker()]);
  const got = takers.map(async (child): Promise<string[]> => (await once(child, "message"))[0]);
  for (const child of takers) child.send(folders);
  const [one = [], other = []] = await Promise.all(got);
  expect([...one, ...other].sort()).toEqual([...folders].sort());
  for (const each of folders) expect(await readdir(each)).toEqual(["run.json"]);
});

it("a folder belongs to this run until the file is removed, also when the file names another address", async () => {
  const mine = await mkdtemp(join(folder, "mine-"));
  // The number of an ended process may equal this one's, as in a restarted container.
  await writeFile(join(mine, "run.json"), JSON.stringify({ pid: process.pid }));
  const file = await takeFolder(mine);
  await expect(takeFolder(mine)).rejects.toThrow(`Lotus runs here already (process ${process.pid}).`);
  await file.publish({ url: "http://localhost:4711" });
  expect(await runOf(mine)).toMatchObject({ url: "http://localhost:4711" });
  expect(JSON.parse(await readFile(join(mine, "run.json"), "utf8"))).toMatchObject({ pid: process.pid });
  await file.remove();
  expect(await runOf(mine)).toBeUndefined();
  await (await takeFolder(mine)).remove();
});
