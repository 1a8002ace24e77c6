/** lotus verify-ledger: recomputes the ledger and exits with 1 at the first difference. */
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { database, folder, json, readFolder } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { adminUrl, placeOf, withAdmin } from "../database/connect.ts";
import { verifyLedger } from "../database/verify-ledger.ts";

export default command({
  about: "Recomputes the ledger from its transfers. Exits with 1 at the first difference.",
  options: { database, folder, json },
  async run(values) {
    const target = {
      url: values.database,
      folder: readFolder(values.folder),
      folderGiven: values.folder !== undefined,
    };
    if (!values.json) print(`Database ${placeOf(await adminUrl(target))}`);
    await withAdmin(target, async (client) => {
      const difference = await verifyLedger(client, (name) => values.json || print(`  holds: ${name}`));
      const { rows } = await client.query<{ count: string }>("select count(*) from billing.transfers");
      const transfers = Number(rows[0]?.count);
      if (values.json) printJson({ right: difference === undefined, difference: difference ?? null, transfers });
      if (difference !== undefined) throw new Refusal(difference);
      if (!values.json) print(`The ledger is right: ${transfers} transfers.`);
    });
  },
});
