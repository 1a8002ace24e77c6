import fc from "fast-check";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { AMOUNT_MAX, Amount, BALANCE_MAX, readBalance, toNumber, toText } from "./money.ts";

const amounts = fc.bigInt({ min: 1n, max: AMOUNT_MAX });
/** Any text. The texts of fast-check's unit "binary" are the same; its table of all code points costs a second. */
const texts = fc.array(fc.nat({ max: 0x10ffff })).map((points) => String.fromCodePoint(...points));
const balances = fc.bigInt({ min: 0n, max: BALANCE_MAX });

describe("an amount", () => {
  it("is read again from its text", () => {
    fc.assert(
      fc.property(amounts, (amount) => {
        expect(v.parse(Amount, toText(amount))).toBe(amount);
      }),
    );
  });

  it("is read exactly, with one decimal or two, with zeros at the end or without", () => {
    const units = fc.bigInt({ min: 1n, max: AMOUNT_MAX / 100n - 1n });
    fc.assert(
      fc.property(units, fc.integer({ min: 0, max: 99 }), (whole, cents) => {
        const exact = whole * 100n + BigInt(cents);
        expect(v.parse(Amount, `${whole}.${String(cents).padStart(2, "0")}`)).toBe(exact);
        if (cents % 10 === 0) expect(v.parse(Amount, `${whole}.${cents / 10}`)).toBe(exact);
        if (cents === 0) expect(v.parse(Amount, `${whole}`)).toBe(exact);
      }),
    );
  });

  it("has only digits with at most two decimals, above 0 and at most the limit", () => {
    fc.assert(
      fc.property(fc.oneof(texts, fc.stringMatching(/^[-+ 0-9.,eEx_]{0,20}$/)), (text) => {
        const plain = /^(0|[1-9][0-9]*)(\.[0-9]{1,2})?$/.test(text) && Number(text) > 0 && Number(text) <= 1e9;
        expect(v.safeParse(Amount, text).success).toBe(plain);
      }),
      { examples: [["1000000000"], ["1000000000.01"], ["0.01"], ["0.00"], ["1.001"], ["01"], ["1e3"], ["١"], ["1\n"]] },
    );
  });
});

describe("a balance", () => {
  it("is printed to the cent, and different amounts have different texts", () => {
    fc.assert(
      fc.property(balances, (balance) => {
        const cents = String(balance % 100n).padStart(2, "0");
        expect(toText(balance)).toBe(`${balance / 100n}.${cents}`.replace(/\.?0{1,2}$/, ""));
        expect(JSON.stringify(toNumber(balance))).toBe(toText(balance));
      }),
      { examples: [[BALANCE_MAX], [BALANCE_MAX - 1n], [89_050n], [10n], [1n], [0n], [100_000n]] },
    );
  });

  it("outside of the ledger's limits is an error", () => {
    expect(readBalance("0")).toBe(0n);
    expect(readBalance(String(BALANCE_MAX))).toBe(BALANCE_MAX);
    expect(() => readBalance(-1)).toThrow(RangeError);
    expect(() => readBalance(String(BALANCE_MAX + 1n))).toThrow(RangeError);
  });
});
