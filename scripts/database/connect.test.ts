import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { adminUrl, placeOf, readDatabaseUrl, readPoolerUrl, withAdmin } from "./connect.ts";

const RUN = "postgres://lotus:secret@127.0.0.1:1/run";
const VARIABLE = "postgres://lotus:secret@127.0.0.1:1/variable";
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "lotus-test-"));
  mkdirSync(join(folder, "secrets", "database-admin"), { recursive: true });
  writeFileSync(join(folder, "secrets", "database-admin", "url"), RUN);
  vi.stubEnv("DATABASE_ADMIN_URL", "");
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

describe("the database of a command", () => {
  it("is that of --database, then of a given --folder, then of DATABASE_ADMIN_URL, then of the default folder", async () => {
    expect(await adminUrl({ url: undefined, folder, folderGiven: false })).toBe(RUN);
    vi.stubEnv("DATABASE_ADMIN_URL", VARIABLE);
    expect(await adminUrl({ url: undefined, folder, folderGiven: false })).toBe(VARIABLE);
    expect(await adminUrl({ url: undefined, folder, folderGiven: true })).toBe(RUN);
    const given = "postgres://a@127.0.0.1/given";
    expect(await adminUrl({ url: given, folder, folderGiven: true })).toBe(given);
  });

  it("is refused with an error message when the folder has no run, or the URL is wrong", async () => {
    const target = { url: undefined, folder: join(folder, "none"), folderGiven: true };
    await expect(adminUrl(target)).rejects.toThrow(`No Lotus has run in ${join(folder, "none")}.`);
    await expect(adminUrl({ ...target, url: "5432" })).rejects.toThrow("--database must be a URL such as postgres://");
    vi.stubEnv("DATABASE_ADMIN_URL", "postgres://a@b/c?ssl=true");
    await expect(adminUrl({ ...target, folderGiven: false })).rejects.toThrow("DATABASE_ADMIN_URL: The database URL");
    expect(() => readDatabaseUrl("--database", "postgres://a@b/c?sslmode=allow")).toThrow(
      "sslmode in the database URL",
    );
  });

  it("that does not answer is named without its password, and with advice when it is the run of a folder", async () => {
    const work = () => Promise.resolve();
    await expect(withAdmin({ url: undefined, folder, folderGiven: true }, work)).rejects.toThrow(
      /^No server listens at 127\.0\.0\.1:1 .*Start Lotus: npm start\.$/,
    );
    const error = await withAdmin({ url: VARIABLE, folder, folderGiven: false }, work).catch(({ message }) => message);
    expect(error).not.toContain("Start Lotus");
    expect(error).not.toContain("secret");
    expect(placeOf(VARIABLE)).toBe("variable at 127.0.0.1:1");
    expect(placeOf("postgres://a:secret@db.example/shop")).toBe("shop at db.example:5432");
  });
});

describe("the URL of a pooler", () => {
  it("may omit the database, and contain a pattern for the user", () => {
    for (const url of [
      "postgres://localhost:6432",
      "postgres://{role}.project-ref@pooler.example:6543/",
      "postgres://{role}@pooler.example/shop?sslmode=verify-full",
    ])
      expect(readPoolerUrl("--pooler", url)).toBe(url);
  });

  it("is refused with an error that names the option", () => {
    expect(() => readPoolerUrl("--pooler", "6432")).toThrow("--pooler must be a URL such as postgres://");
    expect(() => readPoolerUrl("DATABASE_POOLER_URL", "postgres://a@b?pgbouncer=true")).toThrow(
      "DATABASE_POOLER_URL: The database URL has the parameter pgbouncer.",
    );
  });
});
