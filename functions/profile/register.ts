/** POST /profile/register. Creates a user. The event user-registered opens the billing account; a notification welcomes the user. */
import * as v from "valibot";
import { query } from "#kernel/database";
import { Email, normalEmail } from "#kernel/email";
import { created, endpoint } from "#kernel/endpoint";
import type { Envelope } from "#kernel/outbox";
import { Problem } from "#kernel/problem";
import { settings } from "#kernel/settings";
import { hashPassword } from "./password.ts";
import { Password, User, Username } from "./user.ts";

/** How long the registrations of an address are counted, as an interval of Postgres. */
const REGISTRATIONS_WINDOW = "1 hour";

interface Registered {
  created: v.InferInput<typeof User> | null;
  emitted: Envelope[];
}

export default endpoint({
  method: "POST",
  caller: "anyone",
  summary: "Creates a user, opens their account and sends a welcome notification.",
  // scrypt uses 0.15 to 0.2 s of CPU a request: about six requests a second fill a pod.
  scale: { target: 4, limit: 8, maxPods: 5, connections: 2 },
  body: v.pipe(
    v.object({ email: Email, password: Password, username: v.optional(v.nullable(Username)) }),
    v.metadata({
      examples: [{ email: "grace@example.com", password: "correct horse battery", username: "Grace" }],
    }),
  ),
  answers: { 201: User, 409: ["email-taken"], 429: ["too-many-attempts"] },
  async handle({ body, address, source, span, traceparent, publish }) {
    // Before the hash, which costs 150 ms of a core. A refused email counts too, because the refusal reveals that an account exists.
    const [counted] = await query<{ wait: number }>(
      "count-registration",
      "select profile.count_registration($1, $2, $3) as wait",
      [address, settings().REGISTRATIONS_PER_ADDRESS_MAX, REGISTRATIONS_WINDOW],
      "repeatable",
      span,
    );
    const wait = counted?.wait ?? 0;
    if (wait > 0) {
      const detail = `This address has registered too many users. Try again in ${wait} seconds.`;
      return new Problem("too-many-attempts", detail, { headers: { "retry-after": String(wait) } });
    }
    const [row] = await query<Registered>(
      "register",
      "select created, emitted from profile.register($1, $2, $3, $4, $5, $6)",
      [
        body.email,
        normalEmail(body.email),
        body.username ?? null,
        await hashPassword(body.password, address),
        source,
        traceparent,
      ],
      "once",
      span,
    );
    if (!row?.created)
      return new Problem("email-taken", "A user with this email exists. Log in, or use another email.");
    publish(row.emitted);
    return created({ ...row.created, createdAt: new Date(row.created.createdAt).toISOString() });
  },
});
