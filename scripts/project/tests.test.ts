import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ROOT } from "./paths.ts";

const files = (
  await Promise.all(
    ["functions", "triggers", "scripts"].map(async (folder) =>
      (
        await readdir(join(ROOT, folder), { recursive: true })
      )
        .filter((file) => file.endsWith(".test.ts"))
        .map((file) => join(folder, file)),
    ),
  )
).flat();

/** Whether a query of the locks or sessions of the whole server names its database or its process. */
const OF_ALL_DATABASES = /from pg_(?:locks|stat_activity)(?![^"`]*\b(?:database|datname|pid|usename)\b)/;

describe("tests, of which two files run at the same time on one server,", () => {
  it("do not connect to the template: Postgres copies only a database without connections", async () => {
    const breaches: string[] = [];
    for (const file of files)
      if (/\("templateUrl"\)(?!\.replace\(\/\\\/lotus\$\/)/.test(await readFile(join(ROOT, file), "utf8")))
        breaches.push(file);
    expect(breaches).toEqual([]);
  });

  it("count no locks or sessions of another test", async () => {
    const breaches: string[] = [];
    for (const file of files) if (OF_ALL_DATABASES.test(await readFile(join(ROOT, file), "utf8"))) breaches.push(file);
    expect(breaches).toEqual([]);
  });
});
