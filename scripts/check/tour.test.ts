/** Follows docs/tour.md in a copy of the checkout: its commands, its files, its start, and the event at its end. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, cp, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TraceDetail } from "../console/protocol.ts";
import { ROOT } from "../project/paths.ts";
import { call, eventually, newUser } from "../testing/lotus.ts";

const run = promisify(execFile);
/** Npm, the build and a run make these folders. */
const NOT_COPIED = ["node_modules", ".git", "dist", ".lotus"];
const START = "npm start";
const TOUR_MILLISECONDS_MAX = 300_000;

type Step = { readonly command: string } | { readonly file: string; readonly content: string };

/** Returns the commands of the tour and the files that it replaces, in their order. */
async function readTour(): Promise<Step[]> {
  const text = await readFile(join(ROOT, "docs", "tour.md"), "utf8");
  const blocks = text.matchAll(/(?:[Rr]eplace `([^`]+)`:\n\n)?```([a-z]+)\n([\s\S]*?)```/g);
  return [...blocks].flatMap(([, file, language, content = ""]): Step[] => {
    if (file !== undefined) return [{ file, content }];
    if (language !== "sh")
      throw new Error(`docs/tour.md has a block of ${language} without the file that it replaces.`);
    return content
      .trim()
      .split("\n")
      .map((command) => ({ command }));
  });
}

describe("the tour", () => {
  let folder: string;
  let checkout: string;
  let lotus: ChildProcess | undefined;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "lotus-tour-"));
    // Postgres runs as another user when root starts it, and finds its data through this folder.
    await chmod(folder, 0o711);
    checkout = join(folder, "lotus");
    await cp(ROOT, checkout, {
      recursive: true,
      filter: (source) => !NOT_COPIED.includes(relative(ROOT, source)),
    });
    await symlink(join(ROOT, "node_modules"), join(checkout, "node_modules"));
  });
  afterAll(async () => {
    if (lotus?.exitCode === null && lotus.kill("SIGINT")) await once(lotus, "exit");
    await rm(folder, { recursive: true, force: true });
  });

  /** Runs a command of the tour. `npx lotus` would run the checkout that npm has linked. */
  const execute = (command: string) => {
    const [program = "", ...words] = command.replace(/^npx lotus /, "node scripts/lotus.mjs ").split(" ");
    return run(program, words, { cwd: checkout });
  };

  /** Starts Lotus on a free port. Resolves to its address. */
  async function start(): Promise<string> {
    const child = spawn("node", ["scripts/lotus.mjs", "start", "--port", "0", "--folder", join(folder, "data")], {
      cwd: checkout,
    });
    lotus = child;
    let text = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (text += chunk));
    return eventually("Lotus says where it is", () => {
      if (child.exitCode !== null) throw new Error(`Lotus ended:\n${text}`);
      return /Lotus is at (\S+) /.exec(text)?.[1];
    });
  }

  it(
    "leads to an endpoint whose event its own trigger settles",
    async () => {
      const steps = await readTour();
      const starts = steps.flatMap((step, index) => ("command" in step && step.command === START ? [index] : []));
      // The first start is that of every clone, which scripts/commands/start.test.ts covers.
      expect(starts).toEqual([0, steps.length - 1]);
      for (const step of steps.slice(1, -1)) {
        if ("command" in step) await execute(step.command);
        else {
          // A file that the commands did not write would be a slip of the tour.
          await readFile(join(checkout, step.file));
          await writeFile(join(checkout, step.file), step.content);
        }
      }
      const url = await start();
      const user = await newUser({ url });
      const sent = await user.call("POST /gift/send");
      expect([sent.status, sent.body]).toEqual([200, { name: "flowers" }]);
      const trace = sent.headers.get("traceresponse")?.split("-")[1];
      await eventually("the event gift-sent is settled", async () => {
        const { events } = (await call({ url }, `GET /console/api/traces/${trace}`)).body as TraceDetail;
        return events.some(({ topic, state }) => topic === "gift-sent" && state === "settled");
      });
    },
    TOUR_MILLISECONDS_MAX,
  );
});
