import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, normalize } from "node:path";
import { describe, expect, it } from "vitest";
import { ROOT } from "../project/paths.ts";

const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard", "*.md"], {
  cwd: ROOT,
  encoding: "utf8",
})
  .split("\n")
  .filter((file) => file !== "" && existsSync(join(ROOT, file)));
const read = (file: string) => readFileSync(join(ROOT, file), "utf8");
const withoutFences = (text: string) => text.replace(/^```[\s\S]*?^```/gm, "");

/** The anchor that GitHub gives a heading. */
const anchorOf = (heading: string) =>
  heading
    .replace(/`|\*/g, "")
    .trim()
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
const anchorsOf = (text: string) =>
  [...withoutFences(text).matchAll(/^#+ (.+)$/gm)].map(([, heading = ""]) => anchorOf(heading));

interface Link {
  readonly file: string;
  readonly path: string;
  readonly anchor: string | undefined;
}

const links: Link[] = files.flatMap((file) =>
  [...withoutFences(read(file)).matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = ""]) => target)
    .filter((target) => !/^[a-z]+:/.test(target))
    .map((target) => {
      const [path = "", anchor] = target.split("#");
      return { file, path: path === "" ? file : normalize(join(dirname(file), path)), anchor };
    }),
);

describe("the documents", () => {
  it("link only to files and headings that exist", () => {
    expect(links.length).toBeGreaterThan(20);
    const missing = links.filter(({ path }) => !existsSync(join(ROOT, path)));
    expect(missing).toEqual([]);
    const lost = links.filter(
      ({ path, anchor }) => anchor !== undefined && path.endsWith(".md") && !anchorsOf(read(path)).includes(anchor),
    );
    expect(lost).toEqual([]);
  });

  it("name only npm scripts that exist", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    const named = files.flatMap((file) =>
      [...read(file).matchAll(/npm (?:run ([a-z:-]+)|(start|test)\b)/g)].map(([, name, short]) => [
        file,
        name ?? short ?? "",
      ]),
    );
    expect(named.filter(([, name = ""]) => scripts[name] === undefined)).toEqual([]);
  });

  it("name only commands of the program lotus that exist", () => {
    const commands = files.flatMap((file) =>
      [...read(file).matchAll(/npx lotus ([a-z-]+)/g)].map(([, name]) => [file, name]),
    );
    expect(commands.filter(([, name]) => !existsSync(join(ROOT, `scripts/commands/${name}.ts`)))).toEqual([]);
  });

  it("list every page of docs/ in the index, and every decision record in its own", () => {
    const index = read("docs/README.md");
    const pages = files.filter((file) => /^docs\/[^/]+\.md$/.test(file) && file !== "docs/README.md");
    expect(pages.filter((file) => !index.includes(`](${file.slice("docs/".length)})`))).toEqual([]);
    const records = files.filter((file) => /^docs\/decisions\/\d{4}/.test(file));
    const decisions = read("docs/decisions/README.md");
    expect(records.filter((file) => !decisions.includes(`](${file.slice("docs/decisions/".length)})`))).toEqual([]);
    expect(new Set(records.map((file) => /\d{4}/.exec(file)?.[0])).size).toBe(records.length);
  });

  it("give each decision record its four parts in order, on one page", () => {
    for (const file of files.filter((name) => /^docs\/decisions\/\d{4}/.test(name))) {
      const text = read(file);
      const parts = [...text.matchAll(/^## (.+)$/gm)].map(([, heading]) => heading);
      expect([file, parts]).toEqual([file, ["Context", "Decision", "Consequences", "Alternatives considered"]]);
      expect(text, file).toMatch(/^# \d+\. .+\n\n\d{4}-\d\d-\d\d/);
      expect(text.split("\n").length, file).toBeLessThan(70);
    }
  });

  it("keep the README within 200 lines", () => {
    expect(read("README.md").split("\n").length).toBeLessThanOrEqual(200);
  });
});
