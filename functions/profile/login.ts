/** POST /profile/login. Issues a token for an email and its password. Failed attempts make later ones wait. */
import { setTimeout as delay } from "node:timers/promises";
import * as v from "valibot";
import { query } from "#kernel/database";
import { Email, normalEmail } from "#kernel/email";
import { endpoint, ok } from "#kernel/endpoint";
import { TOKEN_SECONDS } from "#kernel/limits";
import { failure, log } from "#kernel/log";
import { Problem } from "#kernel/problem";
import type { Span } from "#kernel/telemetry";
import { accountDelayMilliseconds, LOGIN_LIMITS as LIMITS } from "./login-limits.ts";
import { passwordMatches } from "./password.ts";
import { signToken } from "./signing.ts";
import { PasswordAttempt } from "./user.ts";

interface Opened {
  retry_after_seconds: number;
  refused_for_failures: boolean;
  account_failures: number;
  /** A timestamp with microseconds, as text: JavaScript's Date would lose them. */
  attempt: string;
  id: string | null;
  email: string | null;
  password_hash: string | null;
}

const BEGIN = `select retry_after_seconds, refused_for_failures, account_failures, attempt::text as attempt, id, email, password_hash
  from profile.begin_login($1, $2, $3, $4, $5)`;
const END = "select profile.end_login($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/** Removes the attempt from those in progress. Only "wrong" counts as a failure. */
function endLogin(
  normal: string,
  address: string,
  attempt: string,
  outcome: "right" | "wrong" | "unknown",
  span: Span,
) {
  const { PAIR_FAILURES_FREE, ADDRESS_FAILURES_FREE, FIRST_WAIT, LONGEST_WAIT, MEMORY } = LIMITS;
  const limits = [PAIR_FAILURES_FREE, ADDRESS_FAILURES_FREE, FIRST_WAIT, LONGEST_WAIT, MEMORY];
  return query("end-login", END, [normal, address, attempt, outcome, ...limits], "repeatable", span);
}

export default endpoint({
  method: "POST",
  caller: "anyone",
  summary: "Issues a token for an email and its password.",
  description: "Failed attempts make later ones wait: Retry-After states the seconds.",
  uses: ["database", "signing-key"],
  // scrypt uses 0.15 to 0.2 s of CPU a request: about six requests a second fill a pod.
  scale: { target: 4, limit: 8, maxPods: 7, connections: 2 },
  body: v.object({ email: Email, password: PasswordAttempt }),
  answers: {
    200: v.object({ token: v.string(), expiresIn: v.pipe(v.number(), v.integer()) }),
    401: ["invalid-credentials"],
    429: ["too-many-attempts"],
  },
  async handle({ body: { email, password }, address, span }) {
    const normal = normalEmail(email) ?? "";
    const [opened] = await query<Opened>(
      "begin-login",
      BEGIN,
      [normal, address, LIMITS.PAIR_FAILURES_FREE, LIMITS.ATTEMPT_LASTS, LIMITS.MEMORY],
      "repeatable",
      span,
    );
    if (!opened) throw new Error("profile.begin_login returned no row");
    const { retry_after_seconds: wait, attempt } = opened;
    if (wait > 0) {
      const reason = opened.refused_for_failures
        ? "Too many logins have failed."
        : "Other logins of this account from this address are in progress.";
      const detail = `${reason} Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.`;
      return new Problem("too-many-attempts", detail, { headers: { "retry-after": String(wait) } });
    }
    let matches: boolean;
    try {
      await delay(accountDelayMilliseconds(opened.account_failures));
      matches = await passwordMatches(password, opened.password_hash, address);
    } catch (error) {
      // The attempt would otherwise count as in progress for ATTEMPT_LASTS. The first error is the answer.
      await endLogin(normal, address, attempt, "unknown", span).catch((second: Error) =>
        log("error", "the end of a login is not recorded", failure(second)),
      );
      throw error;
    }
    const { id, email: registered } = opened;
    if (!matches || id === null || registered === null) {
      await endLogin(normal, address, attempt, "wrong", span);
      return new Problem("invalid-credentials", "No user has this email and this password.");
    }
    await endLogin(normal, address, attempt, "right", span);
    return ok({ token: await signToken({ id, email: registered }), expiresIn: TOKEN_SECONDS });
  },
});
