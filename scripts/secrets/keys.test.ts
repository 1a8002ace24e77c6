import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { decodeProtectedHeader } from "jose";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { TOKEN_SECONDS } from "#kernel/settings";
import { ROOT } from "../project/functions.ts";
import { call, eventually, newUser, startTestLotus, type TestLotus } from "../testing/lotus.ts";
import { ensureKeys, OVERLAP_SECONDS, rotateKeys } from "./keys.ts";

const run = promisify(execFile);
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "lotus-keys-"));
});
afterEach(() => vi.useRealTimers());
afterAll(() => rm(folder, { recursive: true, force: true }));

const publicKeys = async (): Promise<{ kid: string; d?: string }[]> =>
  JSON.parse(await readFile(join(folder, "public-keys/jwks.json"), "utf8")).keys;
const idOf = (token: string) => decodeProtectedHeader(token).kid;

describe("keys", () => {
  it("are made once, and are for nobody else to read", async () => {
    await ensureKeys(folder);
    const made = await publicKeys();
    await ensureKeys(folder);
    expect(await publicKeys()).toEqual(made);
    expect(made[0]).not.toHaveProperty("d");
    for (const file of ["signing-key/key.json", "public-keys/jwks.json"])
      expect((await stat(join(folder, file))).mode & 0o077).toBe(0);
  });

  it("that were retired are dropped when the last token they signed has expired, not before", async () => {
    const now = Date.now();
    vi.useFakeTimers({ toFake: ["Date"], now });
    const [first] = await publicKeys();
    const second = await rotateKeys(folder);
    const accepted = TOKEN_SECONDS + OVERLAP_SECONDS;
    vi.setSystemTime(now + (accepted - 1) * 1000);
    const third = await rotateKeys(folder);
    expect((await publicKeys()).map(({ kid }) => kid)).toEqual([third, second, first?.kid]);
    vi.setSystemTime(now + (accepted + 1) * 1000);
    const fourth = await rotateKeys(folder);
    expect((await publicKeys()).map(({ kid }) => kid)).toEqual([fourth, third, second]);
  });

  it("that sign are kept, however long ago a rotation that was interrupted has retired them", async () => {
    const now = Date.now();
    vi.useFakeTimers({ toFake: ["Date"], now });
    const signing = join(folder, "signing-key/key.json");
    const [present] = await publicKeys();
    await cp(signing, `${signing}.before`);
    const interrupted = await rotateKeys(folder);
    await cp(`${signing}.before`, signing);
    vi.setSystemTime(now + 10 * TOKEN_SECONDS * 1000);
    const next = await rotateKeys(folder);
    expect((await publicKeys()).map(({ kid }) => kid)).toEqual([next, interrupted, present?.kid]);
  });

  it("are listed and rotated by the command, which refuses what it does not know", async () => {
    const command = (...words: string[]) =>
      run(process.execPath, ["--import", "tsx", "scripts/secrets/keys.ts", "--folder", folder, ...words], {
        cwd: ROOT,
      }).then(
        ({ stdout }) => stdout.trimEnd().split("\n"),
        (error: { code: number; stderr: string }) => [`exit ${error.code}`, error.stderr.trimEnd()],
      );
    const before = await command();
    const after = await command("rotate");
    expect(before[0]).toMatch(/^\S+ {2}signs$/);
    expect(after[0]).toMatch(/^\S+ {2}signs$/);
    expect(after[1]).toMatch(new RegExp(`^${before[0]?.split(" ")[0]} {2}accepted until \\d{4}-\\d\\d-\\d\\dT`));
    expect(await command("rotat")).toEqual([
      "exit 2",
      `"rotat" is not a command here. Say: npm run keys, or: npm run keys rotate.`,
    ]);
  });
});

describe("a rotation while Lotus runs", () => {
  let lotus: TestLotus;
  beforeAll(async () => {
    lotus = await startTestLotus();
  });
  afterAll(() => lotus.stop());

  it("keeps the old tokens valid, signs new ones with the new key, and restarts nothing", async () => {
    const secrets = dirname(dirname(lotus.manifests.functions.get("profile-login")?.SIGNING_KEY_FILE ?? ""));
    const user = await newUser(lotus);
    expect((await user.call("GET /profile/me")).status).toBe(200);
    const pid = lotus.functions.get("profile-me")?.running?.child.pid;
    const kid = await rotateKeys(secrets);
    const { token } = (
      await call(lotus, "POST /profile/login", { body: { email: user.email, password: user.password } })
    ).body;
    expect([idOf(token), idOf(user.token)]).toEqual([kid, expect.not.stringMatching(kid)]);
    expect((await user.call("GET /profile/me")).status).toBe(200);
    // A process looks into the key file at most once a second.
    await eventually(
      "the new token is accepted",
      async () => (await call(lotus, "GET /profile/me", { token })).status === 200,
    );
    const { keys } = (await call(lotus, "GET /profile/jwks")).body as { keys: { kid: string }[] };
    expect(keys.map((key) => key.kid)).toEqual([kid, idOf(user.token)]);
    expect(JSON.stringify(keys)).not.toMatch(/"d"|retiredAt/);
    expect(lotus.functions.get("profile-me")?.running?.child.pid).toBe(pid);
  });
});
