/** Exact money: minor units (cents) in a bigint everywhere inside, decimal text or a JSON number outside. */
import * as v from "valibot";

/** Minor units; 890.5 is 89050n. */
export type Money = bigint;

const MINOR_UNITS = 100n;
/** 1 000 000 000.00, in minor units. */
export const AMOUNT_MAX: Money = 1_000_000_000n * MINOR_UNITS;
/** Limits a balance to fifteen digits, which a JSON number represents exactly. The ledger refuses a greater balance. */
export const BALANCE_MAX: Money = 999_999_999_999_999n;

const DECIMAL = /^(0|[1-9][0-9]{0,15})(?:\.([0-9]{1,2}))?$/;

/** Reads decimal text with at most two decimals. Returns undefined for other text. */
function parseMoney(text: string): Money | undefined {
  const match = DECIMAL.exec(text);
  if (match?.[1] === undefined) return undefined;
  return BigInt(match[1]) * MINOR_UNITS + BigInt((match[2] ?? "").padEnd(2, "0"));
}

/** 89050n -> 890.5. Exact for everything up to BALANCE_MAX. */
export function toNumber(money: Money): number {
  return Number(money) / Number(MINOR_UNITS);
}

/** 89050n -> "890.5". */
export function toText(money: Money): string {
  return String(toNumber(money));
}

/**
 * Reads a balance of the database: minor units, as text or number.
 * @throws {RangeError} when it is negative or above BALANCE_MAX, which the ledger excludes
 */
export function readBalance(value: string | number): Money {
  const balance = BigInt(value);
  if (balance < 0n || balance > BALANCE_MAX)
    throw new RangeError(`The ledger returned a balance of ${balance} minor units.`);
  return balance;
}

const AMOUNT_MAX_TEXT = String(AMOUNT_MAX / MINOR_UNITS);
/**
 * Decimal text of an amount: above 0, at most AMOUNT_MAX (a power of ten), at most two decimals.
 * Without lookahead, which RE2 and the regex crate of Rust do not know: OpenAPI clients use this pattern too.
 */
export const AMOUNT_PATTERN = `^(?:[1-9][0-9]{0,${AMOUNT_MAX_TEXT.length - 2}}(?:\\.[0-9]{1,2})?|${AMOUNT_MAX_TEXT}(?:\\.0{1,2})?|0\\.(?:0[1-9]|[1-9][0-9]?))$`;
const AMOUNT = new RegExp(AMOUNT_PATTERN);

const EXPECTED = `must be an amount above 0 and at most ${AMOUNT_MAX_TEXT}, with at most two decimals, such as 10 or 10.50`;

/** An amount in a request: decimal text, or the text of a JSON number. OpenAPI shows it as a number. */
export const Amount = v.pipe(
  v.string(EXPECTED),
  v.metadata({
    description: `An amount of money: it ${EXPECTED}.`,
    type: "number",
    exclusiveMinimum: 0,
    maximum: Number(AMOUNT_MAX_TEXT),
    multipleOf: 1 / Number(MINOR_UNITS),
    examples: [10.5],
  }),
  v.check((text) => AMOUNT.test(text), EXPECTED),
  v.transform((text) => parseMoney(text) as Money),
);

/** An amount in an event: decimal text. */
export const AmountText = v.pipe(v.string(), v.regex(DECIMAL, "must be decimal text with at most two decimals"));

/** A balance or a price in an answer: a JSON number in major units. */
export const AmountNumber = v.pipe(v.number(), v.minValue(0));
