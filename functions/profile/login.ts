/** POST /profile/login. Gives a token for an email and its password; too many attempts have to wait. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { Email } from "#kernel/email";
import { endpoint, ok } from "#kernel/endpoint";
import { Problem } from "#kernel/problem";
import { TOKEN_SECONDS } from "#kernel/settings";
import { passwordMatches } from "./password.ts";
import { signToken } from "./signing.ts";
import { PasswordAttempt } from "./user.ts";

/** Attempts in one window. An address stands for many people behind one router, so it is allowed more. */
const ATTEMPTS_PER_ACCOUNT_MAX = 10;
const ATTEMPTS_PER_ADDRESS_MAX = 100;
const ATTEMPTS_WINDOW = "15 minutes";

interface Opened {
  retry_after_seconds: number;
  id: string | null;
  user_email: string | null;
  password_hash: string | null;
}

export default endpoint({
  method: "POST",
  caller: "anyone",
  summary: "Issues a token for an email and its password.",
  description: "Failed attempts make later ones wait: Retry-After states the seconds.",
  uses: ["database", "signing-key"],
  body: v.object({ email: Email, password: PasswordAttempt }),
  answers: {
    200: v.object({ token: v.string(), expiresIn: v.pipe(v.number(), v.integer()) }),
    401: ["invalid-credentials"],
    429: ["too-many-attempts"],
  },
  async handle({ body, address }) {
    const [opened] = await query<Opened>("begin-login", "select * from profile.begin_login($1, $2, $3, $4, $5)", [
      body.email,
      address,
      ATTEMPTS_PER_ACCOUNT_MAX,
      ATTEMPTS_PER_ADDRESS_MAX,
      ATTEMPTS_WINDOW,
    ]);
    const wait = opened?.retry_after_seconds ?? 0;
    if (wait > 0) {
      const detail = `Too many logins have failed. Try again in ${wait} seconds.`;
      return new Problem("too-many-attempts", detail, { headers: { "retry-after": String(wait) } });
    }
    const matches = await passwordMatches(body.password, opened?.password_hash ?? null);
    if (!matches || !opened?.id || !opened.user_email) {
      return new Problem("invalid-credentials", "No user has this email and this password.");
    }
    await query("end-login", "select profile.end_login($1, $2)", [body.email, address]);
    return ok({ token: await signToken({ id: opened.id, email: opened.user_email }), expiresIn: TOKEN_SECONDS });
  },
});
