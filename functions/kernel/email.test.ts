import * as fc from "fast-check";
import { safeParse } from "valibot";
import { describe, expect, it } from "vitest";
import { EMAIL_BYTES_MAX, Email, normalEmail } from "./email.ts";

describe("an email address", () => {
  it.each([
    ["ada@example.com", "ada@example.com"],
    ["Ada@Example.COM", "ada@example.com"],
    ["o'brien+$1--{x}|`~=?^!#%*/&@example.com", "o'brien+$1--{x}|`~=?^!#%*/&@example.com"],
    ["ada@exämple.com", "ada@xn--exmple-cua.com"],
    ["ada@XN--EXMPLE-CUA.com", "ada@xn--exmple-cua.com"],
    ["ada@пример.рф", "ada@xn--e1afmkfd.xn--p1ai"],
    ["ada@example.xn--p1ai", "ada@example.xn--p1ai"],
    ["用户@例え。jp", "用户@xn--r8jz45g.jp"],
    ["JÖRG@exa\u0308mple.com", "jörg@xn--exmple-cua.com"],
    ["jo\u0308rg@example.com", "jörg@example.com"],
    ["straße@straße.de", "strasse@xn--strae-oqa.de"],
    ["STRASSE@straße.de", "strasse@xn--strae-oqa.de"],
    ["ΟΔΟΣ@example.com", "οδος@example.com"],
    ["οδοσ@example.com", "οδος@example.com"],
    ["İ@example.com", "i̇@example.com"],
    ["\u212a@example.com", "k@example.com"],
    ["хлеб@example.com", "хлеб@example.com"],
  ])("%j is compared as %j", (email, normal) => expect(normalEmail(email)).toBe(normal.normalize("NFC")));

  it.each([
    "",
    "@",
    "ada",
    "ada@",
    "@example.com",
    "ada@example",
    "ada@localhost",
    "ada@127.0.0.1",
    "ada@0x7f.1",
    "ada@[127.0.0.1]",
    "ada@[::1]",
    "ada@@example.com",
    "a@b@example.com",
    " ada@example.com",
    "ada@example.com ",
    "ada@example.com\n",
    "ada@example.com\r\nBcc: x@example.com",
    "ada\u0000@example.com",
    "ada@example.com\u0000",
    "a da@example.com",
    '"a da"@example.com',
    "ada@exam ple.com",
    "ada@exam%70le.com",
    "ada@example.com/x",
    "ada@example.com#x",
    "ada@example.com:25",
    "ada@example.com?x",
    "ada@example..com",
    "ada@.example.com",
    "ada@example.com.",
    "ada@-example.com",
    "ada@example-.com",
    "ada@exa_mple.com",
    "ada@xn--a.com",
    "ada@example.c",
    "ada@example.1",
    "ada@exam\u00adple.com",
    "ada@exam\u200bple.com",
    "a\u200dda@example.com",
    "a\u202eda@example.com",
    "a\ufeffda@example.com",
    "ada\ud800@example.com",
    "ada@\udc00.com",
    "ａｄａ@example.com",
    "oﬃce@example.com",
    "x²@example.com",
    "😀@example.com",
    "ada@™.com.",
    "a@example.com, b@example.com",
    "Ada <ada@example.com>",
    `ada@${"a".repeat(64)}.com`,
    `ada@${"ä".repeat(60)}.com`,
    // Each label grows in DNS, where a domain has at most 253 characters.
    `ada@${"ä.".repeat(60)}com`,
    `${"a".repeat(EMAIL_BYTES_MAX - "@example.com".length + 1)}@example.com`,
    `${"ä".repeat(122)}@example.com`,
  ])("%j is refused", (email) => {
    expect(normalEmail(email)).toBeUndefined();
    expect(safeParse(Email, email).issues?.[0]?.message).toBe("must be an email address of at most 254 bytes");
  });

  it("may have 254 bytes", () => {
    for (const letter of ["a", "ä"]) {
      const local = letter.repeat((EMAIL_BYTES_MAX - "@example.com".length) / Buffer.byteLength(letter));
      expect(normalEmail(`${local}@example.com`)).toBe(`${local}@example.com`);
    }
  });

  it("has a normal form that is its own normal form, for any address that is accepted", () => {
    const letters = fc.string({
      unit: fc.constantFrom(..."aZ9.ßẞςΣİıſÅjo\u0308\u0301\u0345ͅᾳΐ用хé"),
      minLength: 1,
      maxLength: 12,
    });
    const any = fc.string({ unit: "grapheme", minLength: 1, maxLength: 8 });
    const domain = fc.constantFrom("example.com", "EXÄMPLE.com", "例え。jp", "straße.de");
    fc.assert(
      fc.property(fc.oneof(letters, any), domain, (local, host) => {
        const normal = normalEmail(`${local}@${host}`);
        if (normal !== undefined) expect(normalEmail(normal)).toBe(normal);
      }),
      { numRuns: 5000 },
    );
  });
});
