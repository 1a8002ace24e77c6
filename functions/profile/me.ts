/** GET /profile/me. Tells the caller who they are. */
import type * as v from "valibot";
import { query } from "#kernel/database";
import { endpoint, ok } from "#kernel/endpoint";
import { Problem } from "#kernel/problem";
import { User } from "./user.ts";

interface Row extends Omit<v.InferInput<typeof User>, "createdAt"> {
  /** ISO 8601, independent of the session's date style. */
  created_at: string;
}

const SELECT = `select id, email, username, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as created_at
  from profile.users where id = $1`;

export default endpoint({
  method: "GET",
  caller: "user",
  summary: "Returns the caller's profile.",
  answers: { 200: User },
  async handle({ user, span }) {
    const [row] = await query<Row>("me", SELECT, [user.id], "repeatable", span);
    if (!row) return new Problem("unauthenticated", "The user that this token was given to does not exist any more.");
    return ok({ id: row.id, email: row.email, username: row.username, createdAt: row.created_at });
  },
});
