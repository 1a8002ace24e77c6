/** What a user is, and what an email and a password must be. */
import * as v from "valibot";

const PASSWORD_LENGTH_MIN = 8;
export const PASSWORD_LENGTH_MAX = 128;
const USERNAME_LENGTH_MAX = 100;

const passwordExpected = `must be ${PASSWORD_LENGTH_MIN} to ${PASSWORD_LENGTH_MAX} characters of well-formed Unicode`;
/**
 * NIST SP 800-63B §5.1.1.2: a length, and no rules about what it is made of. But half a surrogate pair is no character: all
 * such halves are hashed alike.
 */
export const Password = v.pipe(
  v.string(passwordExpected),
  v.minLength(PASSWORD_LENGTH_MIN, passwordExpected),
  v.maxLength(PASSWORD_LENGTH_MAX, passwordExpected),
  v.regex(/^\P{Cs}*$/u, passwordExpected),
);

const usernameExpected = `must be 1 to ${USERNAME_LENGTH_MAX} characters, none of them a control character`;
/** Cc: control characters, of which Postgres cannot keep NUL. Cs: half a surrogate pair, which it would keep as another. */
export const Username = v.pipe(
  v.string(usernameExpected),
  v.minLength(1, usernameExpected),
  v.maxLength(USERNAME_LENGTH_MAX, usernameExpected),
  v.regex(/^[^\p{Cc}\p{Cs}]*$/u, usernameExpected),
);

/** A user as the API shows one. */
export const User = v.pipe(
  v.object({
    id: v.pipe(v.string(), v.uuid()),
    email: v.string(),
    username: v.nullable(v.string()),
    createdAt: v.pipe(v.string(), v.isoTimestamp()),
  }),
  v.title("User"),
);
