/** The events of the profile service. */
import * as v from "valibot";
import { Email } from "#kernel/email";

/** user-registered, version 1: a user registered. */
export const UserRegistered = v.object({
  userId: v.pipe(v.string(), v.uuid()),
  email: Email,
});
