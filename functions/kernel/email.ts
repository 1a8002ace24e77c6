/** Email addresses: which ones Lotus accepts, and when two of them are the same. The only file that decides either. */
import { domainToASCII } from "node:url";
import * as v from "valibot";

/** RFC 5321 §4.5.3.1.3: a path has at most 256 octets, two of them brackets. */
export const EMAIL_BYTES_MAX = 254;
/** RFC 1035 §2.3.4. */
const DOMAIN_LENGTH_MAX = 253;

/**
 * RFC 5322 atoms as browsers accept them (HTML, <input type=email>), and letters, marks and digits of every script (RFC 6532;
 * the letters are those of PRECIS, RFC 8264 §9.1). Symbols, controls and invisible characters outside ASCII are left out.
 */
const LOCAL_PART = /^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\p{Ll}\p{Lu}\p{Lo}\p{Lm}\p{Nd}\p{Mn}\p{Mc}-]+$/u;
/** A domain as people write it: labels of letters, marks, digits and hyphens, separated by a full stop of any script (UTS 46 §2.3). */
const DOMAIN = /^[\p{L}\p{M}\p{Nd}.\u3002\uff0e\uff61-]+$/u;
/** The same domain in DNS (RFC 5890): at least two labels; the last one is not a number. */
const ASCII_DOMAIN = /^(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])$/;

/**
 * Returns the normal form of an address. Two addresses with the same normal form are the same address.
 * The domain becomes its A-labels (IDNA, UTS 46). The local part is composed (Unicode NFC), then mapped to small letters,
 * capitals and small letters, because `ẞ` has no other capital: `STRASSE` equals `straße`, and Σ equals σ and ς. SMTP treats a local part as case-sensitive (RFC 5321 §2.4); mail
 * providers do not.
 * @returns undefined when Lotus does not accept the address
 */
export function normalEmail(email: string): string | undefined {
  const at = email.lastIndexOf("@");
  const local = email.slice(0, at).normalize("NFC");
  const domain = email.slice(at + 1);
  if (at < 1 || Buffer.byteLength(email) > EMAIL_BYTES_MAX) return undefined;
  // Characters with a compatibility form, such as ﬁ or ａ, look like others (RFC 8264 §9.17).
  if (!LOCAL_PART.test(local) || local.normalize("NFKC") !== local || !DOMAIN.test(domain)) return undefined;
  const ascii = domainToASCII(domain);
  if (ascii.length > DOMAIN_LENGTH_MAX || !ASCII_DOMAIN.test(ascii)) return undefined;
  return `${local.toLowerCase().toUpperCase().toLowerCase().normalize("NFC")}@${ascii}`;
}

const EXPECTED = `must be an email address of at most ${EMAIL_BYTES_MAX} bytes`;

/** An email address, as the user has written it. `normalEmail` compares two of them. */
export const Email = v.pipe(
  v.string(EXPECTED),
  v.metadata({
    description: "An email address (RFC 5322). Internationalised domains and local parts (RFC 6532) are accepted.",
    format: "idn-email",
    maxLength: EMAIL_BYTES_MAX,
    pattern: "^[^\\s@]+@[^\\s@]+\\.[^\\s@]{2,}$",
    examples: ["ada@example.com"],
  }),
  v.check((email) => normalEmail(email) !== undefined, EXPECTED),
);
