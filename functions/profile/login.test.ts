import { randomUUID } from "node:crypto";
import { decodeJwt, decodeProtectedHeader } from "jose";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import {
  call,
  eventually,
  newUser,
  startTestLotus,
  type TestLotus,
  type TestUser,
} from "../../scripts/testing/lotus.ts";
import { accountDelayMilliseconds, LOGIN_LIMITS } from "./login-limits.ts";

let lotus: TestLotus;
let user: TestUser;
beforeAll(async () => {
  lotus = await startTestLotus();
  user = await newUser(lotus);
});
beforeEach(async () => {
  await lotus.database.query("delete from profile.attempts");
});
afterAll(() => lotus.stop());

const login = (body: unknown, forwarded?: string) =>
  call(lotus, "POST /profile/login", {
    body,
    headers: forwarded === undefined ? {} : { "x-forwarded-for": forwarded },
  });
const right = () => ({ email: user.email, password: user.password });
const wrong = (email = user.email) => ({ email, password: "wrong password" });
const unknownEmail = () => `${randomUUID()}@example.com`;

const NORMAL = () => user.email;
/** Writes failures into a bucket: each real one costs a tenth of a second. `refused` in seconds from now. */
const setFailures = (bucket: string, failures: number, refused = 0) =>
  lotus.database.query(
    `insert into profile.attempts (bucket, failures, in_progress, refused_until, forgotten_at)
     values ($1, $2, '{}', clock_timestamp() + $3 * interval '1 second', clock_timestamp() + interval '30 minutes')
     on conflict (bucket) do update set failures = excluded.failures, refused_until = excluded.refused_until`,
    [bucket, failures, refused],
  );
/** The address that the gateway reports for this machine. */
const addressOfTests = async (): Promise<string> => {
  await login(wrong(unknownEmail()));
  const { rows } = await lotus.database.query("select bucket from profile.attempts where bucket like 'address:%'");
  return rows[0].bucket.slice("address:".length);
};
const stateOf = async (bucket: string) =>
  (
    await lotus.database.query(
      `select failures, cardinality(in_progress) as "inProgress",
         round(extract(epoch from refused_until - clock_timestamp()))::float as wait
       from profile.attempts where bucket = $1`,
      [bucket],
    )
  ).rows[0];

describe("POST /profile/login", () => {
  it("returns a token that is valid for an hour and names its user", async () => {
    const { status, body } = await login(right());
    expect([status, body]).toEqual([200, { token: expect.any(String), expiresIn: 3600 }]);
    const { sub, email, iat = 0, exp, ...rest } = decodeJwt(body.token);
    expect([sub, email, exp]).toEqual([user.id, user.email, iat + 3600]);
    expect(rest).toEqual({ iss: "lotus", aud: "lotus" });
    const { keys } = (await call(lotus, "GET /profile/jwks")).body;
    expect(decodeProtectedHeader(body.token)).toEqual({ alg: "EdDSA", typ: "JWT", kid: keys[0].kid });
  });

  it("ignores the case of the email, but not that of the password", async () => {
    expect((await login({ ...right(), email: user.email.toUpperCase() })).status).toBe(200);
    expect((await login({ ...right(), password: user.password.toUpperCase() })).status).toBe(401);
  });

  it("answers the same for a wrong password and for an unknown email", async () => {
    const [known, unknown] = [await login(wrong()), await login(wrong(unknownEmail()))];
    expect([known.status, known.body.code]).toEqual([401, "invalid-credentials"]);
    expect([unknown.status, unknown.body]).toEqual([known.status, known.body]);
    const names = ({ headers }: typeof known) => [...headers.keys()].sort();
    expect(names(unknown)).toEqual(names(known));
  });

  it("takes about as long for both", async () => {
    const times = { known: [] as number[], unknown: [] as number[] };
    for (let round = 0; round < 7; round++) {
      for (const [which, email] of [["known", user.email] as const, ["unknown", unknownEmail()] as const]) {
        const began = performance.now();
        await login(wrong(email));
        times[which].push(performance.now() - began);
      }
    }
    const median = (values: number[]) => values.sort((one, other) => one - other)[3] ?? 0;
    const ratio = median(times.unknown) / median(times.known);
    // Without the same work for an unknown email the ratio is below a fifth.
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

  it.each(["", "' or '1'='1", "\u0000", "\ud800"])("treats %j as a wrong password", async (password) => {
    expect((await login({ email: user.email, password })).status).toBe(401);
  });
});

describe("failed logins", () => {
  let address: string;
  beforeAll(async () => {
    address = await addressOfTests();
  });
  const pair = (email = NORMAL()) => `pair:${address} ${email}`;

  /** Expects a refusal and returns the seconds of Retry-After. */
  const refused = async (answer: ReturnType<typeof login>): Promise<number> => {
    const { status, headers, body } = await answer;
    expect([status, body.code]).toEqual([429, "too-many-attempts"]);
    return Number(headers.get("retry-after"));
  };

  it("make one address wait for one account after ten; the right password waits too, another account does not", async () => {
    for (let attempt = 0; attempt < 10; attempt++) expect((await login(wrong())).status).toBe(401);
    for (const body of [wrong(), right(), { ...right(), email: user.email.toUpperCase() }]) {
      const wait = await refused(login(body));
      expect(wait).toBeGreaterThan(20);
      expect(wait).toBeLessThanOrEqual(30);
    }
    expect((await login(wrong(unknownEmail()))).status).toBe(401);
  });

  it("do not lock out a user who comes from another address", async () => {
    const { PAIR_FAILURES_FREE, ADDRESS_FAILURES_FREE, ATTEMPT_LASTS, FIRST_WAIT, LONGEST_WAIT, MEMORY } = LOGIN_LIMITS;
    for (let failure = 1; failure <= PAIR_FAILURES_FREE; failure++) {
      const { rows } = await lotus.database.query(
        "select attempt::text from profile.begin_login($1, '203.0.113.9', $2, $3, $4)",
        [NORMAL(), PAIR_FAILURES_FREE, ATTEMPT_LASTS, MEMORY],
      );
      await lotus.database.query("select profile.end_login($1, '203.0.113.9', $2, 'wrong', $3, $4, $5, $6, $7)", [
        NORMAL(),
        rows[0].attempt,
        PAIR_FAILURES_FREE,
        ADDRESS_FAILURES_FREE,
        FIRST_WAIT,
        LONGEST_WAIT,
        MEMORY,
      ]);
    }
    expect((await login(right())).status).toBe(200);
    await setFailures(`pair:203.0.113.9 ${NORMAL()}`, 1000, 900);
    await setFailures(`account:${NORMAL()}`, 1000);
    await setFailures("address:203.0.113.9", 1000, 900);
    const began = performance.now();
    expect((await login(right())).status).toBe(200);
    // The account's logins are slower, and never refused.
    expect(performance.now() - began).toBeGreaterThan(4_000);
  });

  it.each([
    [9, 30],
    [10, 60],
    [11, 120],
    [13, 480],
    [14, 900],
    [500, 900],
  ])("after %i others make the next wait %i seconds long", async (before, seconds) => {
    await setFailures(pair(), before);
    expect((await login(wrong())).status).toBe(401);
    const { failures, wait } = await stateOf(pair());
    expect([failures, Math.round(wait / 10) * 10]).toEqual([before + 1, seconds]);
  });

  it("are forgotten after their time, and by the right password", async () => {
    await setFailures(pair(), 500);
    await lotus.database.query("update profile.attempts set forgotten_at = clock_timestamp()");
    expect((await login(wrong())).status).toBe(401);
    expect(await stateOf(pair())).toMatchObject({ failures: 1 });
    expect((await login(right())).status).toBe(200);
    expect(await stateOf(pair())).toMatchObject({ failures: 0, inProgress: 0 });
  });

  it("at the same time are all counted: fourteen wrong passwords have ten tries", async () => {
    const answers = await Promise.all(Array.from({ length: 14 }, () => login(wrong())));
    expect(answers.map(({ status }) => status).sort()).toEqual([...Array(10).fill(401), ...Array(4).fill(429)]);
    expect(await stateOf(pair())).toMatchObject({ failures: 10, inProgress: 0 });
  });

  it("are apart from logins in progress: twenty right passwords at a time succeed or wait a second", async () => {
    const answers = await Promise.all(Array.from({ length: 20 }, () => login(right())));
    for (const { status, headers, body } of answers)
      if (status !== 200)
        expect([status, headers.get("retry-after"), body.detail]).toEqual([
          429,
          "1",
          expect.stringContaining("in progress"),
        ]);
    expect(answers.filter(({ status }) => status === 200).length).toBeGreaterThanOrEqual(10);
    expect(await stateOf(pair())).toMatchObject({ failures: 0, inProgress: 0 });
    expect((await login(right())).status).toBe(200);
  });

  it("are not those whose process was killed", async () => {
    const begun = Array.from({ length: 10 }, () => login(wrong()).catch(() => undefined));
    await eventually("the logins are in progress", async () => (await stateOf(pair()))?.inProgress === 10);
    lotus.functions.get("profile-login")?.running?.child.kill("SIGKILL");
    await Promise.all(begun);
    expect(await refused(login(right()))).toBe(1);
    await lotus.database.query(
      "update profile.attempts set in_progress = array(select s - interval '30 seconds' from unnest(in_progress) s)",
    );
    expect((await login(right())).status).toBe(200);
    expect(await stateOf(pair())).toMatchObject({ failures: 0, inProgress: 0 });
  });

  it("are not those that ended without an answer about the password, such as 503", async () => {
    const { rows } = await lotus.database.query(
      "select attempt::text as attempt from profile.begin_login($1, '203.0.113.1', 10, '30 seconds', '30 minutes')",
      [NORMAL()],
    );
    const bucket = `pair:203.0.113.1 ${NORMAL()}`;
    expect(await stateOf(bucket)).toMatchObject({ failures: 0, inProgress: 1 });
    await lotus.database.query(
      "select profile.end_login($1, '203.0.113.1', $2, 'unknown', 10, 100, '30 seconds', '15 minutes', '30 minutes')",
      [NORMAL(), rows[0].attempt],
    );
    expect(await stateOf(bucket)).toMatchObject({ failures: 0, inProgress: 0 });
    expect(await stateOf(`account:${NORMAL()}`)).toBeUndefined();
  });

  it("receive the same answers for an email without a user", async () => {
    const email = unknownEmail();
    for (let attempt = 0; attempt < 10; attempt++) expect((await login(wrong(email))).status).toBe(401);
    expect(await refused(login(wrong(email)))).toBeGreaterThan(20);
  });

  it("are remembered by the database: a new process refuses as well", async () => {
    await setFailures(pair(), 10, 30);
    await lotus.functions.get("profile-login")?.stop();
    await refused(login(right()));
  });

  it("make an address wait after a hundred; no X-Forwarded-For of the client changes it", async () => {
    await setFailures(`address:${address}`, 99);
    expect((await login(wrong(unknownEmail()))).status).toBe(401);
    for (const forwarded of [undefined, "203.0.113.7", "198.51.100.1, 203.0.113.8", "10.0.0.1", "nonsense", ",,"])
      expect(await refused(login(right(), forwarded))).toBeLessThanOrEqual(30);
    // Refused attempts are not counted.
    expect(await stateOf(`account:${NORMAL()}`)).toBeUndefined();
  });
});

describe("the delay of an account", () => {
  it("grows with the failures from all addresses, and has a limit", () => {
    const delays = [0, 19, 20, 21, 22, 23, 24, 25, 1_000_000].map(accountDelayMilliseconds);
    expect(delays).toEqual([0, 0, 250, 500, 1000, 2000, 4000, 4000, 4000]);
  });
});
