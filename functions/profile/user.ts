/** The rules for a user, a username and a password. functions/kernel/email.ts has those for an email. */
import * as v from "valibot";

const PASSWORD_LENGTH_MIN = 8;
const PASSWORD_LENGTH_MAX = 128;
const USERNAME_LENGTH_MAX = 100;

/** JSON Schema counts characters (code points), as people do; JavaScript's `length` counts UTF-16 units. */
const charactersOf = (text: string) => [...text].length;
/** Whether the text contains no half of a surrogate pair. All halves have the same hash, and Postgres cannot store them. */
const isWellFormed = (text: string) => !/\p{Cs}/u.test(text);

const attemptExpected = `must be at most ${PASSWORD_LENGTH_MAX} characters`;
/** A password that a login tries: any text. The rules for new passwords do not apply. */
export const PasswordAttempt = v.pipe(
  v.string("must be text"),
  v.metadata({ maxLength: PASSWORD_LENGTH_MAX, format: "password", examples: ["correct horse battery"] }),
  v.check((text) => charactersOf(text) <= PASSWORD_LENGTH_MAX, attemptExpected),
);

const passwordExpected = `must be ${PASSWORD_LENGTH_MIN} to ${PASSWORD_LENGTH_MAX} characters of well-formed Unicode`;
/** NIST SP 800-63B §5.1.1.2: a length, and no rules about the characters. */
export const Password = v.pipe(
  v.string(passwordExpected),
  v.metadata({
    description: "The characters are well-formed Unicode.",
    minLength: PASSWORD_LENGTH_MIN,
    maxLength: PASSWORD_LENGTH_MAX,
    format: "password",
    examples: ["correct horse battery"],
  }),
  v.check((text) => charactersOf(text) >= PASSWORD_LENGTH_MIN, passwordExpected),
  v.check((text) => charactersOf(text) <= PASSWORD_LENGTH_MAX, passwordExpected),
  v.check(isWellFormed, passwordExpected),
);

const usernameExpected = `must be 1 to ${USERNAME_LENGTH_MAX} characters without control characters`;
/** Postgres cannot store NUL; the other control characters would break lines of logs and terminals. A text, because OpenAPI clients use it too. */
const USERNAME_PATTERN = "^[^\\x00-\\x1f\\x7f-\\x9f]+$";
export const Username = v.pipe(
  v.string(usernameExpected),
  v.metadata({ minLength: 1, maxLength: USERNAME_LENGTH_MAX, examples: ["Ada"] }),
  v.regex(new RegExp(USERNAME_PATTERN), usernameExpected),
  v.check((text) => charactersOf(text) <= USERNAME_LENGTH_MAX, usernameExpected),
  v.check(isWellFormed, usernameExpected),
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
