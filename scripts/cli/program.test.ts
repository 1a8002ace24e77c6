import { execFile } from "node:child_process";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { COMMANDS } from "../commands/index.ts";
import { PROGRAM, ROOT } from "../project/paths.ts";
import { command, helpOf } from "./command.ts";
import { describeError, exitCodeOf, Refusal, UsageError } from "./errors.ts";
import { nearest } from "./nearest.ts";

interface Ended {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

function lotus(...args: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(process.execPath, [PROGRAM, ...args], { cwd: ROOT }, (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err });
    });
  });
}

describe("the program lotus", () => {
  it("has one file for each command", async () => {
    const files = (await readdir(join(ROOT, "scripts/commands"))).filter((file) => /^[a-z-]+\.ts$/.test(file));
    expect(
      files
        .map((file) => file.slice(0, -3))
        .filter((name) => name !== "index")
        .sort(),
    ).toEqual(Object.keys(COMMANDS).sort());
  });

  it("lists the commands in groups", async () => {
    const { code, out } = await lotus();
    expect(code).toBe(0);
    for (const name of Object.keys(COMMANDS)) expect(out).toMatch(new RegExp(`^  ${name} +\\S`, "m"));
    expect((await lotus("--help")).out).toBe(out);
  });

  it.each(Object.keys(COMMANDS))("shows the help of %s and does nothing else", async (name) => {
    const { code, out, err } = await lotus(name, "--bogus", "--help");
    expect([code, err]).toEqual([0, ""]);
    expect(out).toContain(`Usage: lotus ${name}`);
    expect(out.split("\n").length).toBeGreaterThan(3);
  });

  it("names the nearest command and the nearest option, with exit code 2", async () => {
    expect(await lotus("strat")).toMatchObject({ code: 2, err: expect.stringContaining("Did you mean start?") });
    expect(await lotus("scenario", "--user", "2")).toMatchObject({
      code: 2,
      err: "lotus scenario has no option --user. Did you mean --users? See: npx lotus scenario --help\n",
    });
  });

  it.each(["database", "folder", "url", "brokers", "json", "kafka"])(
    "gives --%s the same type and placeholder in every command",
    async (option) => {
      const commands = await Promise.all(Object.values(COMMANDS).map(({ load }) => load()));
      const found = commands.flatMap(({ options }) => options[option] ?? []);
      expect(found.length).toBeGreaterThan(0);
      expect(new Set(found.map(({ type, value }) => `${type} ${value}`)).size).toBe(1);
    },
  );
});

describe("a command", () => {
  const seen: unknown[] = [];
  const example = command({
    about: "Does it.",
    options: {
      count: { type: "string", value: "N", about: "how often", default: "1" },
      inspect: { type: "string", value: "NAME", implied: "all", about: "opens it" },
      quiet: { type: "boolean", about: "silent" },
    },
    async run(values) {
      seen.push({ ...values });
    },
  });

  it("reads its options", async () => {
    await example.run("example", ["--count", "3", "--inspect"]);
    await example.run("example", ["--inspect=order-pay", "--quiet"]);
    expect(seen).toEqual([
      { count: "3", inspect: "all", quiet: false },
      { count: "1", inspect: "order-pay", quiet: true },
    ]);
  });

  it("refuses an argument that it does not accept", async () => {
    await expect(example.run("example", ["extra"])).rejects.toThrow('accepts no argument; "extra" is one');
    await expect(example.run("example", ["--count"])).rejects.toThrow(UsageError);
  });

  it("shows defaults and values in its help", () => {
    expect(helpOf("example", example)).toContain("--count N         how often (default 1)");
    expect(helpOf("example", example)).toContain("--inspect[=NAME]  opens it");
  });
});

describe("an error", () => {
  it("shows the message of an expected failure, and the stack of a defect", () => {
    expect(describeError(new Refusal("The port is busy."))).toBe("The port is busy.");
    expect(describeError(Object.assign(new Error("no"), { code: "EACCES", path: "/x" }))).toMatch(
      /^Permission denied: \/x/,
    );
    expect(describeError(new TypeError("x is undefined"))).toMatch(/TypeError: x is undefined\n +at /);
    const failed = Object.assign(new TypeError("fetch failed"), { cause: { code: "ECONNREFUSED" } });
    expect(describeError(failed)).toBe("fetch failed");
  });

  it("has the exit code of its kind", () => {
    expect([exitCodeOf(new UsageError()), exitCodeOf(new Refusal()), exitCodeOf(new TypeError())]).toEqual([2, 1, 1]);
  });
});

describe("the nearest word", () => {
  it.each([
    ["strat", "start"],
    ["verify", "verify-ledger"],
    ["xyzzy", undefined],
  ])("of %s is %s", (word, found) => {
    expect(nearest(word, ["start", "stop", "verify-ledger"])).toBe(found);
  });
});
