/** The events of the profile service. */
import * as v from "valibot";
import { EMAIL_LENGTH_MAX } from "#kernel/settings";

/** user-registered, version 1: somebody has become a user. */
export const UserRegistered = v.object({
  userId: v.pipe(v.string(), v.uuid()),
  email: v.pipe(v.string(), v.maxLength(EMAIL_LENGTH_MAX), v.rfcEmail()),
});
