/** The events of the billing service. */
import * as v from "valibot";

/** `ledger-sealed`, version 1: the hash of every account's last entry at a moment. A copy outside the database shows later changes. */
export const LedgerSealed = v.object({
  moment: v.pipe(v.string(), v.isoTimestamp()),
  hash: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, "must be a SHA-256 in hexadecimal digits")),
  /** Accounts that changed since the seal before. */
  accounts: v.pipe(v.number(), v.integer(), v.minValue(0)),
});
