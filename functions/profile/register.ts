/** POST /profile/register. Creates a user; user-registered opens the billing account, a notification welcomes. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { Email } from "#kernel/email";
import { created, endpoint } from "#kernel/endpoint";
import type { Envelope } from "#kernel/outbox";
import { Problem } from "#kernel/problem";
import { hashPassword } from "./password.ts";
import { Password, User, Username } from "./user.ts";

interface Registered {
  created: v.InferInput<typeof User> | null;
  emitted: Envelope[];
}

export default endpoint({
  method: "POST",
  caller: "anyone",
  summary: "Creates a user, opens their account and sends a welcome notification.",
  body: v.pipe(
    v.object({ email: Email, password: Password, username: v.optional(v.nullable(Username)) }),
    v.metadata({
      examples: [{ email: "grace@example.com", password: "correct horse battery", username: "Grace" }],
    }),
  ),
  answers: { 201: User, 409: ["email-taken"] },
  async handle({ body, source, traceparent, publish }) {
    const [row] = await query<Registered>(
      "register",
      "select * from profile.register($1, $2, $3, $4, $5)",
      [body.email, body.username ?? null, await hashPassword(body.password), source, traceparent],
      "once",
    );
    if (!row?.created)
      return new Problem("email-taken", "There is a user with this email already. Log in, or use another.");
    publish(row.emitted);
    return created({ ...row.created, createdAt: new Date(row.created.createdAt).toISOString() });
  },
});
