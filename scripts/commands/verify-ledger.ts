/** lotus verify-ledger: recomputes the ledger and exits with 1 at the first difference. */
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { database, folder, json } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { adminUrl, placeOf, targetOf, withAdmin } from "../database/connect.ts";
import { type Progress, type Seal, verifyLedger } from "../database/verify-ledger.ts";

/** Between two lines of progress. */
const PROGRESS_MILLISECONDS = 2_000;

const perSecond = (count: number, milliseconds: number) => Math.round((count * 1000) / Math.max(1, milliseconds));

/** Reads TIME=HASH. @throws {UsageError} when the text is something else */
function readSeal(text: string): Seal {
  const [, moment = "", hash = ""] = /^([^=]+)=([0-9a-f]{64})$/i.exec(text) ?? [];
  if (Number.isNaN(Date.parse(moment)))
    throw new UsageError(
      "--seal needs the moment and the hash of a seal, such as 2026-11-28T15:00:00.000123Z=<64 hexadecimal digits>",
    );
  return { moment, hash };
}

export default command({
  about: "Recomputes the ledger from its transfers, also beside payments. Exits with 1 at the first difference.",
  options: {
    database,
    folder,
    json,
    quick: { type: "boolean", about: "compare the sum of all balances only" },
    seal: { type: "string", value: "TIME=HASH", about: "compare with a copy of a seal that was kept elsewhere" },
  },
  async run(values) {
    const seals = values.seal === undefined ? [] : [readSeal(values.seal)];
    const target = targetOf(values);
    if (!values.json) print(`Database ${placeOf(await adminUrl(target))}`);
    await withAdmin(target, async (client) => {
      const began = performance.now();
      let verified: Progress = { entries: 0, of: 0 };
      let shown = began;
      const difference = await verifyLedger(client, {
        quick: values.quick,
        seals,
        report: (name) => values.json || print(`  holds: ${name}`),
        progress(progress) {
          verified = progress;
          if (values.json || performance.now() - shown < PROGRESS_MILLISECONDS) return;
          shown = performance.now();
          print(
            `  ${progress.entries} of ${progress.of} entries, ${perSecond(progress.entries, shown - began)} entries/s`,
          );
        },
      });
      const rate = perSecond(verified.entries, performance.now() - began);
      const { entries } = verified;
      if (values.json)
        printJson({ right: difference === undefined, difference: difference ?? null, entries, entriesPerSecond: rate });
      if (difference !== undefined) throw new Refusal(difference);
      if (values.json) return;
      print(values.quick ? "All balances add up to 0." : `The ledger is right: ${entries} entries, ${rate} entries/s.`);
    });
  },
});
