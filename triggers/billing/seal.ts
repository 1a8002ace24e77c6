/** Every hour. Seals the ledger: hashes the last entry of each account, logs the seal and publishes `ledger-sealed`. */
import { setTimeout as delay } from "node:timers/promises";
import { query } from "#kernel/database";
import {
  SEAL_ACCOUNTS_MAX,
  SEAL_RUN_MILLISECONDS_MAX,
  SEAL_WAIT_MILLISECONDS_MAX,
  SEAL_WAIT_MILLISECONDS_STEP,
} from "#kernel/limits";
import { failure, log } from "#kernel/log";
import { type Envelope, publish } from "#kernel/outbox";
import { subscriber } from "#kernel/subscriber";
import { LedgerSealed } from "../../functions/billing/events.ts";

interface Progress {
  readonly state: "waiting" | "sealing" | "ended" | "sealed";
  readonly hash?: string;
  readonly accounts?: number;
  readonly event?: Envelope;
}

/** Publishes the event of a seal. When that fails, its outbox row stays, and the relay publishes it. */
async function publishSeal(event: Envelope): Promise<void> {
  try {
    await publish([event]);
    await query("forget-published-seal", "select billing.forget_published_seal($1)", [event.event.id]);
  } catch (error) {
    log("warning", "a seal was not published; the relay publishes it", { reason: failure(error).reason ?? "" });
  }
}

export default subscriber({
  schedule: "0 * * * *",
  publishes: { topic: "ledger-sealed", data: LedgerSealed },
  async handle({ subscriber: source }) {
    const until = performance.now() + SEAL_RUN_MILLISECONDS_MAX;
    const waitUntil = performance.now() + SEAL_WAIT_MILLISECONDS_MAX;
    const [begun] = await query<{ moment: string }>(
      "begin-seal",
      `select to_char(billing.begin_seal() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as moment`,
      [],
    );
    const moment = begun?.moment ?? "";
    while (performance.now() < until) {
      const [row] = await query<{ progress: Progress }>(
        "continue-seal",
        "select billing.continue_seal($1, $2, $3, $4) as progress",
        [moment, SEAL_ACCOUNTS_MAX, source, null],
      );
      const { state = "ended", hash = "", accounts = 0, event } = row?.progress ?? {};
      if (state === "sealed" && event !== undefined) {
        log("info", "sealed the ledger", { moment, hash, count: accounts });
        return publishSeal(event);
      }
      if (state === "ended") return log("info", "another run has completed the seal", { moment });
      if (state === "waiting") {
        if (performance.now() > waitUntil)
          return log("info", "a transaction that began before the seal is running; the next run continues", { moment });
        await delay(SEAL_WAIT_MILLISECONDS_STEP);
      }
    }
    log("warning", "the ledger was not sealed in time; the next run continues", { moment });
  },
});
