/** lotus verify-ledger: recomputes the ledger and exits with 1 at the first difference. */
import { command } from "../cli/command.ts";
import { Refusal, UsageError } from "../cli/errors.ts";
import { database, folder, json, readFolder } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { adminUrl, placeOf, withAdmin } from "../database/connect.ts";
import { type Seal, verifyLedger } from "../database/verify-ledger.ts";

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
  about: "Recomputes the ledger from its transfers. Exits with 1 at the first difference.",
  options: {
    database,
    folder,
    json,
    quick: { type: "boolean", about: "compare the sum of all balances only" },
    seal: { type: "string", value: "TIME=HASH", about: "compare with a copy of a seal that was kept elsewhere" },
  },
  async run(values) {
    const seals = values.seal === undefined ? [] : [readSeal(values.seal)];
    const target = {
      url: values.database,
      folder: readFolder(values.folder),
      folderGiven: values.folder !== undefined,
    };
    if (!values.json) print(`Database ${placeOf(await adminUrl(target))}`);
    await withAdmin(target, async (client) => {
      const difference = await verifyLedger(client, {
        quick: values.quick,
        seals,
        report: (name) => values.json || print(`  holds: ${name}`),
      });
      const { rows } = await client.query<{ count: string }>("select count(*) from billing.transfers");
      const transfers = Number(rows[0]?.count);
      if (values.json) printJson({ right: difference === undefined, difference: difference ?? null, transfers });
      if (difference !== undefined) throw new Refusal(difference);
      if (!values.json) print(`The ledger is right: ${transfers} transfers.`);
    });
  },
});
