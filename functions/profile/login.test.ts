import { randomUUID } from "node:crypto";
import { decodeJwt, decodeProtectedHeader } from "jose";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { call, newUser, startTestLotus, type TestLotus, type TestUser } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
});
beforeEach(async () => {
  await lotus.database.query("delete from profile.login_attempts");
});
afterAll(() => lotus.stop());

const login = (body: unknown, forwarded?: string) =>
  call(lotus, "POST /profile/login", {
    body,
    headers: forwarded === undefined ? {} : { "x-forwarded-for": forwarded },
  });
const right = () => ({ email: user.email, password: user.password });
const wrong = (email = user.email) => ({ email, password: "wrong password" });
const nobody = () => `${randomUUID()}@example.com`;

/** As if that many had failed already: each costs a tenth of a second. */
const failed = (bucket: "account" | "address", attempts: number) =>
  lotus.database.query("update profile.login_attempts set attempts = $2 where bucket like $1 || ':%'", [
    bucket,
    attempts,
  ]);

describe("POST /profile/login", () => {
  it("gives a token for an hour, that says who it is for", async () => {
    const { status, body } = await login(right());
    expect([status, body]).toEqual([200, { token: expect.any(String), expiresIn: 3600 }]);
    const { sub, email, iat = 0, exp, ...rest } = decodeJwt(body.token);
    expect([sub, email, exp]).toEqual([user.id, user.email, iat + 3600]);
    expect(rest).toEqual({ iss: "lotus", aud: "lotus" });
    const { keys } = (await call(lotus, "GET /profile/jwks")).body;
    expect(decodeProtectedHeader(body.token)).toEqual({ alg: "EdDSA", typ: "JWT", kid: keys[0].kid });
  });

  it("does not mind the case of the email, but that of the password", async () => {
    expect((await login({ ...right(), email: user.email.toUpperCase() })).status).toBe(200);
    expect((await login({ ...right(), password: user.password.toUpperCase() })).status).toBe(401);
  });

  it("answers the same for a wrong password and for an email that nobody has", async () => {
    const [known, unknown] = [await login(wrong()), await login(wrong(nobody()))];
    expect([known.status, known.body.code]).toEqual([401, "invalid-credentials"]);
    expect([unknown.status, unknown.body]).toEqual([known.status, known.body]);
    const names = ({ headers }: typeof known) => [...headers.keys()].sort();
    expect(names(unknown)).toEqual(names(known));
  });

  it("takes about as long for both", async () => {
    const times = { known: [] as number[], unknown: [] as number[] };
    for (let round = 0; round < 7; round++) {
      for (const [which, email] of [["known", user.email] as const, ["unknown", nobody()] as const]) {
        const began = performance.now();
        await login(wrong(email));
        times[which].push(performance.now() - began);
      }
    }
    const median = (values: number[]) => values.sort((one, other) => one - other)[3] ?? 0;
    const ratio = median(times.unknown) / median(times.known);
    // Without the work for nobody it is below a fifth.
    expect(ratio).toBeGreaterThan(1 / 2.5);
    expect(ratio).toBeLessThan(2.5);
  });

  it.each([
    [{}, ["email", "password"]],
    [{ email: "ada", password: "x" }, ["email"]],
    [{ email: "ada@example.com", password: 1 }, ["password"]],
    [{ email: "ada@example.com", password: "x".repeat(129) }, ["password"]],
    [{ email: "ada@example.com\u0000", password: "x" }, ["email"]],
  ])("refuses %j and names the fields", async (given, fields) => {
    const { status, body } = await login(given);
    expect([status, body.code]).toEqual([400, "invalid-request"]);
    expect(body.errors.map(({ field }: { field: string }) => field)).toEqual(fields);
  });

  it.each(["", "' or '1'='1", "\u0000", "\ud800"])(
    "takes %j for a password as any other: it is wrong",
    async (password) => {
      expect((await login({ email: user.email, password })).status).toBe(401);
    },
  );
});

describe("too many logins that fail", () => {
  const refused = async (answer: ReturnType<typeof login>) => {
    const { status, headers, body } = await answer;
    expect([status, body.code]).toEqual([429, "too-many-attempts"]);
    const seconds = Number(headers.get("retry-after"));
    expect(seconds).toBeGreaterThan(0);
    expect(seconds).toBeLessThanOrEqual(15 * 60);
  };

  it("shut an account for a while, for the right password too, and no other account", async () => {
    for (let attempt = 0; attempt < 10; attempt++) expect((await login(wrong())).status).toBe(401);
    await refused(login(wrong()));
    await refused(login(right()));
    await refused(login({ ...right(), email: user.email.toUpperCase() }));
    expect((await login(wrong(nobody()))).status).toBe(401);
  });

  it("at the same time are all counted", async () => {
    const answers = await Promise.all(Array.from({ length: 14 }, () => login(wrong())));
    expect(answers.map(({ status }) => status).sort()).toEqual([...Array(10).fill(401), ...Array(4).fill(429)]);
  });

  it("are told of for an email that nobody has just as for one that somebody has", async () => {
    const email = nobody();
    await login(wrong(email));
    await failed("account", 10);
    await refused(login(wrong(email)));
  });

  it("are remembered by the database: a new process refuses as well", async () => {
    await login(wrong());
    await failed("account", 10);
    await lotus.functions.get("profile-login")?.stop();
    await refused(login(right()));
  });

  it("are forgotten when their time is over, and by a login that succeeds", async () => {
    await login(wrong());
    await failed("account", 10);
    await lotus.database.query("update profile.login_attempts set window_ends_at = clock_timestamp()");
    expect((await login(wrong())).status).toBe(401);
    await failed("account", 9);
    expect((await login(right())).status).toBe(200);
    const { rows } = await lotus.database.query("select attempts from profile.login_attempts");
    expect(rows).toEqual([{ attempts: 1 }]);
  });

  it("shut an address, whatever it says it was forwarded for", async () => {
    await login(wrong(nobody()));
    await failed("address", 100);
    for (const forwarded of [undefined, "203.0.113.7", "198.51.100.1, 203.0.113.8", "10.0.0.1", "nonsense", ",,"]) {
      await refused(login(right(), forwarded));
    }
  });

  it("from an address that is shut already shut no more accounts", async () => {
    await login(wrong(nobody()));
    await failed("address", 100);
    for (let attempt = 0; attempt < 11; attempt++) await refused(login(wrong()));
    await lotus.database.query("delete from profile.login_attempts where bucket like 'address:%'");
    expect((await login(right())).status).toBe(200);
  });
});
