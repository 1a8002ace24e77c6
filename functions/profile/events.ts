/** The events of the profile service. */
import * as v from "valibot";

/** user-registered, version 1: somebody has become a user. */
export const UserRegistered = v.object({
  userId: v.pipe(v.string(), v.uuid()),
  email: v.pipe(v.string(), v.rfcEmail()),
});
