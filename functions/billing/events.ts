/** The events of the billing service. */
import * as v from "valibot";

/** `ledger-sealed`, version 1: a hash over the last entry of every account at `moment`. A copy elsewhere reveals later changes. */
export const LedgerSealed = v.object({
  moment: v.pipe(v.string(), v.isoTimestamp()),
  hash: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, "must be a SHA-256 in hexadecimal digits")),
  /** The number of accounts that changed since the previous seal. */
  accounts: v.pipe(v.number(), v.integer(), v.minValue(0)),
});
