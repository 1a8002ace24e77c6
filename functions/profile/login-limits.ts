/** The limits of logins. docs/decisions/0009-login-limits.md has the reasons. */

/** Durations are texts that Postgres reads as intervals. */
export const LOGIN_LIMITS = {
  /** Failures of one account from one address before the address has to wait for this account. */
  PAIR_FAILURES_FREE: 10,
  /** Failures of one address, with any accounts, before it has to wait. Many people may share an address. */
  ADDRESS_FAILURES_FREE: 100,
  /** The first wait. Each further failure doubles it, up to the longest wait. */
  FIRST_WAIT: "30 seconds",
  LONGEST_WAIT: "15 minutes",
  /** The database deletes a bucket after this time without a failure. */
  MEMORY: "30 minutes",
  /** An attempt whose process was killed counts as in progress for this time. */
  ATTEMPT_LASTS: "30 seconds",
} as const;

/** Failures of one account from all addresses before its logins become slower. They are never refused for this reason. */
const ACCOUNT_FAILURES_FREE = 20;
const ACCOUNT_DELAY_MILLISECONDS_FIRST = 250;
const ACCOUNT_DELAY_MILLISECONDS_MAX = 4_000;

/** Returns the delay of a login whose account has so many failures, in milliseconds. It doubles with each failure. */
export function accountDelayMilliseconds(failures: number): number {
  const doublings = failures - ACCOUNT_FAILURES_FREE;
  if (doublings < 0) return 0;
  return Math.min(ACCOUNT_DELAY_MILLISECONDS_MAX, ACCOUNT_DELAY_MILLISECONDS_FIRST * 2 ** Math.min(doublings, 10));
}
