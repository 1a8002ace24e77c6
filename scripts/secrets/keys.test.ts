import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { decodeProtectedHeader } from "jose";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { KEY_OVERLAP_SECONDS, TOKEN_SECONDS } from "#kernel/limits";
import { PROGRAM, ROOT } from "../project/paths.ts";
import { call, eventually, newUser, startTestLotus, type TestLotus } from "../testing/lotus.ts";
import { addKey, ensureKeys, parseKeys, revokeKey, rotateKeys } from "./keys.ts";

const run = promisify(execFile);
let folder: string;
beforeAll(async () => {
  folder = join(await mkdtemp(join(tmpdir(), "lotus-keys-")), "secrets");
});
afterEach(() => vi.useRealTimers());
afterAll(() => rm(dirname(folder), { recursive: true, force: true }));

const publicKeysOf = async (from: string): Promise<{ kid: string; d?: string; retiredAt?: number }[]> =>
  JSON.parse(await readFile(join(from, "public-keys/jwks.json"), "utf8")).keys;
const publicKeys = () => publicKeysOf(folder);
const signingIdOf = async (from: string): Promise<string> =>
  JSON.parse(await readFile(join(from, "signing-key/key.json"), "utf8")).kid;
const idOf = (token: string) => decodeProtectedHeader(token).kid;
const command = (...words: string[]) =>
  run(process.execPath, [PROGRAM, "keys", "--folder", dirname(folder), ...words], {
    cwd: ROOT,
  }).then(
    ({ stdout }) => stdout.trimEnd().split("\n"),
    (error: { code: number; stderr: string }) => [`exit ${error.code}`, error.stderr.trimEnd()],
  );

/** Fails unless functions accept what login signs, and no temporary file or lock remains. */
async function expectConsistent(from: string): Promise<void> {
  const signing = await signingIdOf(from);
  const valid = (await publicKeysOf(from)).filter(({ retiredAt }) => retiredAt === undefined);
  expect(valid.map(({ kid }) => kid)).toEqual([signing]);
  const files = (await readdir(from, { recursive: true })).sort();
  expect(files).toEqual(["public-keys", "public-keys/jwks.json", "signing-key", "signing-key/key.json"]);
}

describe("keys", () => {
  it("are created once, and only their owner can read them", async () => {
    await ensureKeys(folder);
    const created = await publicKeys();
    await ensureKeys(folder);
    expect(await publicKeys()).toEqual(created);
    expect(created[0]).not.toHaveProperty("d");
    for (const file of ["signing-key/key.json", "public-keys/jwks.json"])
      expect((await stat(join(folder, file))).mode & 0o077).toBe(0);
  });

  it("are created again when the public keys do not contain the signing key", async () => {
    await writeFile(join(folder, "public-keys/jwks.json"), JSON.stringify({ keys: [] }));
    await ensureKeys(folder);
    await expectConsistent(folder);
  });

  it("that are retired leave the file when their last token has expired, not before", async () => {
    const now = Date.now();
    vi.useFakeTimers({ toFake: ["Date"], now });
    const [first] = await publicKeys();
    const second = await rotateKeys(folder);
    const accepted = TOKEN_SECONDS + KEY_OVERLAP_SECONDS;
    vi.setSystemTime(now + (accepted - 1) * 1000);
    const third = await rotateKeys(folder);
    expect((await publicKeys()).map(({ kid }) => kid)).toEqual([third, second, first?.kid]);
    vi.setSystemTime(now + (accepted + 1) * 1000);
    const fourth = await rotateKeys(folder);
    expect((await publicKeys()).map(({ kid }) => kid)).toEqual([fourth, third, second]);
  });

  it("have ids that a command line does not read as options", async () => {
    let keys = await addKey({ publicKeys: [], signingKey: undefined });
    for (let n = 1; n < 500; n++) keys = await addKey(keys);
    expect(keys.publicKeys.filter(({ kid }) => kid.startsWith("-"))).toEqual([]);
  });

  it("stay valid until another key signs, when a rotation was interrupted", async () => {
    const now = Date.now();
    vi.useFakeTimers({ toFake: ["Date"], now });
    const before = await parseKeys(
      await readFile(join(folder, "public-keys/jwks.json"), "utf8"),
      await readFile(join(folder, "signing-key/key.json"), "utf8"),
    );
    const added = await addKey(before);
    // The new public key was written; the process ended before the new key could sign.
    await writeFile(join(folder, "public-keys/jwks.json"), JSON.stringify({ keys: added.publicKeys }));
    const [interrupted] = added.publicKeys;
    const present = await signingIdOf(folder);
    expect((await publicKeys()).find(({ kid }) => kid === present)).not.toHaveProperty("retiredAt");
    vi.setSystemTime(now + 10 * TOKEN_SECONDS * 1000);
    const next = await rotateKeys(folder);
    expect((await publicKeys()).map(({ kid }) => kid)).toEqual([next, interrupted?.kid, present]);
    await expectConsistent(folder);
  });

  it("are listed, rotated and revoked by the command, which refuses other words", async () => {
    const [signing = ""] = await command();
    const rotated = await command("rotate");
    expect(signing).toMatch(/^\S+ {2}signs$/);
    const kid = signing.split(" ")[0] ?? "";
    expect(rotated[0]).toMatch(/^\S+ {2}signs$/);
    expect(rotated[1]).toMatch(new RegExp(`^${kid} {2}accepted until \\d{4}-\\d\\d-\\d\\dT`));
    expect(await command("revoke", kid)).toEqual(rotated.filter((line) => !line.startsWith(kid)));
    expect(await command("revoke", kid)).toEqual([
      "exit 2",
      expect.stringContaining(`No key has the id ${kid}. The keys are: ${rotated[0]?.split(" ")[0]}`),
    ]);
    const usage = "is not an action of lotus keys. Use list, rotate or revoke KID.";
    for (const words of [["rotat"], ["revoke"], ["rotate", "x"], ["revoke", kid, "x"]])
      expect(await command(...words)).toEqual(["exit 2", `"${words.join(" ")}" ${usage}`]);
  });

  it("are replaced at once when the revoked key signs", async () => {
    const signing = await signingIdOf(folder);
    await revokeKey(folder, signing);
    expect((await publicKeys()).map(({ kid }) => kid)).not.toContain(signing);
    await expectConsistent(folder);
  });
});

describe("two changes of the keys at the same time", () => {
  let shared: string;
  beforeEach(async () => {
    shared = join(await mkdtemp(join(tmpdir(), "lotus-keys-")), "secrets");
  });
  afterEach(() => rm(dirname(shared), { recursive: true, force: true }));

  it("leave a signing key that the public keys contain: 60 pairs of rotations", async () => {
    for (let pair = 1; pair <= 60; pair++) {
      const kids = await Promise.all([rotateKeys(shared), rotateKeys(shared)]);
      expect(kids).toContain(await signingIdOf(shared));
      await expectConsistent(shared);
      expect(await publicKeysOf(shared)).toHaveLength(2 * pair);
    }
  });

  it("create one pair, when two starts find none", async () => {
    for (let pair = 1; pair <= 60; pair++) {
      const fresh = join(shared, String(pair));
      await Promise.all([ensureKeys(fresh), ensureKeys(fresh)]);
      await expectConsistent(fresh);
      expect(await publicKeysOf(fresh)).toHaveLength(1);
    }
  });

  it("from two processes wait for each other", async () => {
    const rotate = () =>
      run(process.execPath, [PROGRAM, "keys", "--folder", dirname(shared), "rotate"], {
        cwd: ROOT,
      });
    await Promise.all([rotate(), rotate(), rotate()]);
    await expectConsistent(shared);
    expect(await publicKeysOf(shared)).toHaveLength(3);
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
    // A process reads the key file at once when a token names an unknown key.
    expect((await call(lotus, "GET /profile/me", { token })).status).toBe(200);
    const { keys } = (await call(lotus, "GET /profile/jwks")).body as { keys: { kid: string }[] };
    expect(keys.map((key) => key.kid)).toEqual([kid, idOf(user.token)]);
    expect(JSON.stringify(keys)).not.toMatch(/"d"|retiredAt/);
    expect(lotus.functions.get("profile-me")?.running?.child.pid).toBe(pid);
  });

  it("refuses a revoked key's tokens within seconds, also those that a process has verified before", async () => {
    const secrets = dirname(dirname(lotus.manifests.functions.get("profile-login")?.SIGNING_KEY_FILE ?? ""));
    const user = await newUser(lotus);
    expect((await user.call("GET /profile/me")).status).toBe(200);
    const pid = lotus.functions.get("profile-me")?.running?.child.pid;
    await revokeKey(secrets, idOf(user.token) ?? "");
    const refused = await eventually("the token is refused", async () => {
      const answer = await user.call("GET /profile/me");
      return answer.status !== 200 && answer;
    });
    expect([refused.status, refused.body.code]).toEqual([401, "unauthenticated"]);
    expect(lotus.functions.get("profile-me")?.running?.child.pid).toBe(pid);
    const { keys } = (await call(lotus, "GET /profile/jwks")).body as { keys: { kid: string }[] };
    expect(keys.map(({ kid }) => kid)).not.toContain(idOf(user.token));
    const { email, password } = user;
    const { token } = (await call(lotus, "POST /profile/login", { body: { email, password } })).body;
    expect((await call(lotus, "GET /profile/me", { token })).status).toBe(200);
  });
});
