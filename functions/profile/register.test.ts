import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { call, startTestLotus, type TestLotus } from "../../scripts/testing/lotus.ts";

let lotus: TestLotus;
beforeAll(async () => {
  lotus = await startTestLotus();
});
afterAll(() => lotus.stop());

const PASSWORD = "correct horse battery";
const newEmail = () => `${randomUUID()}@example.com`;
const register = (body: unknown) => call(lotus, "POST /profile/register", { body });
const login = async (email: string, password = PASSWORD) => {
  const { status, body } = await call(lotus, "POST /profile/login", { body: { email, password } });
  expect(status).toBe(200);
  return body.token as string;
};

describe("POST /profile/register", () => {
  it("creates a user, and answers without secrets", async () => {
    const email = newEmail();
    const { status, body } = await register({ email, password: PASSWORD, username: "Ada" });
    expect(status).toBe(201);
    expect(body).toEqual({
      id: expect.stringMatching(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/),
      email,
      username: "Ada",
      createdAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
    });
    const { rows } = await lotus.database.query("select password_hash from profile.users where email = $1", [email]);
    expect(rows[0].password_hash).toMatch(/^scrypt\$16384\$8\$5\$/);
    expect((await call(lotus, "GET /profile/me", { token: await login(email) })).body).toEqual(body);
  });

  it("opens the account and stores a welcome: both can be read at once", async () => {
    const email = newEmail();
    await register({ email, password: PASSWORD });
    const token = await login(email);
    const [balance, notifications] = await Promise.all([
      call(lotus, "GET /billing/balance", { token }),
      call(lotus, "GET /notification", { token }),
    ]);
    expect([balance.status, balance.body]).toEqual([200, { balance: 0 }]);
    expect(notifications.body).toMatchObject([{ message: "Hello! You are welcome. Your account is open", email }]);
  });

  it("accepts a registration without a username", async () => {
    for (const body of [{}, { username: null }]) {
      const answer = await register({ email: newEmail(), password: PASSWORD, ...body });
      expect([answer.status, answer.body.username]).toEqual([201, null]);
    }
  });

  it("refuses an email that is taken, in any case of its letters", async () => {
    const email = newEmail();
    expect((await register({ email, password: PASSWORD })).status).toBe(201);
    for (const taken of [email, email.toUpperCase(), email.replace("example", "Example")]) {
      const { status, body } = await register({ email: taken, password: "another password" });
      expect([status, body.code]).toEqual([409, "email-taken"]);
    }
    await login(email);
  });

  it("creates one user when several register the same email at the same time", async () => {
    const email = newEmail();
    const answers = await Promise.all(
      Array.from({ length: 6 }, (_, n) => register({ email: n % 2 ? email : email.toUpperCase(), password: PASSWORD })),
    );
    expect(answers.map(({ status }) => status).sort()).toEqual([201, 409, 409, 409, 409, 409]);
    const { rows } = await lotus.database.query(
      "select (select count(*)::int from profile.users where lower(email) = $1) as users",
      [email],
    );
    expect(rows).toEqual([{ users: 1 }]);
  });

  const email = "ada@example.com";
  it.each([
    [{}, ["email", "password"]],
    [{ password: PASSWORD }, ["email"]],
    [{ email }, ["password"]],
    [{ email: "ada", password: PASSWORD }, ["email"]],
    [{ email: "ada@example", password: PASSWORD }, ["email"]],
    [{ email: " ada@example.com", password: PASSWORD }, ["email"]],
    [{ email: "ada@example.com\u0000", password: PASSWORD }, ["email"]],
    [{ email: "ada@example.com\n", password: PASSWORD }, ["email"]],
    [{ email: "a@example.com, b@example.com", password: PASSWORD }, ["email"]],
    [{ email: "a'; drop table profile.users; --@example.com", password: PASSWORD }, ["email"]],
    [{ email: `${"a".repeat(243)}@example.com`, password: PASSWORD }, ["email"]],
    [{ email: 1, password: PASSWORD }, ["email"]],
    [{ email: [email], password: PASSWORD }, ["email"]],
    [{ email: null, password: PASSWORD }, ["email"]],
    [{ email, password: "1234567" }, ["password"]],
    [{ email, password: "x".repeat(129) }, ["password"]],
    [{ email, password: 12345678 }, ["password"]],
    [{ email, password: null }, ["password"]],
    [{ email, password: "12345678\ud800" }, ["password"]],
    [{ email, password: PASSWORD, username: 5 }, ["username"]],
    [{ email, password: PASSWORD, username: true }, ["username"]],
    [{ email, password: PASSWORD, username: { toString: "Ada" } }, ["username"]],
    [{ email, password: PASSWORD, username: "" }, ["username"]],
    [{ email, password: PASSWORD, username: "x".repeat(101) }, ["username"]],
    [{ email, password: PASSWORD, username: "A\u0000da" }, ["username"]],
    [{ email, password: PASSWORD, username: "A\r\nda" }, ["username"]],
    [{ email, password: PASSWORD, username: "Ada\udc00" }, ["username"]],
    [{ email: `${"x".repeat(300)}`, password: "", username: [] }, ["email", "password", "username"]],
  ])("refuses %j, and names each field once", async (given, fields) => {
    const { status, headers, body } = await register(given);
    expect([status, body.code]).toEqual([400, "invalid-request"]);
    expect(headers.get("content-type")).toBe("application/problem+json");
    expect(body.errors.map(({ field }: { field: string }) => field)).toEqual(fields);
    expect(JSON.stringify(body)).not.toContain(PASSWORD);
  });

  it("stores every other text unchanged", async () => {
    const username = `'); drop table profile.users; -- $1 \${x} <b>&amp;</b> \\u0000 𝒜da 👩‍🚀 "`;
    const email = `${"o'brien+$1--{x}|`~=?^!#%*/&".padEnd(242, "a")}@example.com`;
    const password = "\u0000 ".repeat(64);
    const { status, body } = await register({ email, password, username });
    expect([status, body.email, body.username]).toEqual([201, email, username]);
    const token = await login(email, password);
    expect((await call(lotus, "GET /profile/me", { token })).body).toEqual(body);
    expect((await call(lotus, "GET /notification", { token })).body).toMatchObject([{ email }]);
  });

  it("accepts the same password typed on another system: composed or not", async () => {
    const email = newEmail();
    await register({ email, password: "caf\u00e9 caf\u00e9" });
    await login(email, "cafe\u0301 cafe\u0301");
  });

  it.each([
    ["jörg@exämple.com", ["JÖRG@EXÄMPLE.COM", "jo\u0308rg@xn--exmple-cua.com"]],
    ["straße@example.com", ["STRASSE@example.com", "strasse@EXAMPLE.com", "STRAẞE@example.com"]],
    ["用户@例え.jp", ["用户@xn--r8jz45g.jp", "用户@例え。jp"]],
    ["İ@example.com", ["i̇@example.com"]],
  ])("accepts %s once, in any form, and keeps the form of the registration", async (email, others) => {
    expect((await register({ email, password: PASSWORD })).body).toMatchObject({ email });
    for (const other of others) {
      expect([other, (await register({ email: other, password: PASSWORD })).status]).toEqual([other, 409]);
      const { body } = await call(lotus, "GET /profile/me", { token: await login(other) });
      expect(body.email).toBe(email);
    }
    const token = await login(email);
    expect((await call(lotus, "GET /notification", { token })).body).toMatchObject([{ email }]);
  });

  it("accepts a hundred attempts an hour from one address, then names the time to wait", async () => {
    vi.stubEnv("REGISTRATIONS_PER_ADDRESS_MAX", "100");
    const limited = await startTestLotus();
    try {
      const attempt = (email: string) =>
        call(limited, "POST /profile/register", {
          body: { email, password: PASSWORD },
          headers: { "x-forwarded-for": email },
        });
      expect((await attempt(newEmail())).status).toBe(201);
      const { rows } = await limited.database.query(
        "update profile.attempts set failures = 99 where bucket like 'registration:%' returning failures",
      );
      expect(rows).toHaveLength(1);
      expect((await attempt(newEmail())).status).toBe(201);
      const { status, headers, body } = await attempt(newEmail());
      expect([status, body.code]).toEqual([429, "too-many-attempts"]);
      expect(Number(headers.get("retry-after"))).toBeGreaterThan(3500);
      await limited.database.query("update profile.attempts set forgotten_at = clock_timestamp()");
      expect((await attempt(newEmail())).status).toBe(201);
    } finally {
      vi.unstubAllEnvs();
      await limited.stop();
    }
  });
});
