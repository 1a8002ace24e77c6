/** lotus new: writes the first files of an endpoint, an event or a service. */
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { print } from "../cli/output.ts";
import { createNew, KINDS } from "../generate/templates.ts";
import { writeStaleFiles } from "../generate/write.ts";
import { fitPostgres } from "../kubernetes/postgres-capacity.ts";

export default command({
  about: "Writes the first files of an endpoint, an event or a service, with a test that passes.",
  usage: "endpoint SERVICE/NAME | event SERVICE/NAME | service NAME",
  options: {},
  async run(_, [word, path, ...rest]) {
    const kind = KINDS.find((candidate) => candidate === word);
    if (kind === undefined || path === undefined || rest.length > 0)
      throw new UsageError(
        "Name the kind and the name: npx lotus new endpoint order/cheapest, event order/order-shipped, or service gift.",
      );
    const files = await createNew(kind, path);
    const generated = [...(await writeStaleFiles()), ...(await fitPostgres())];
    print(`Wrote:\n${[...files, ...generated].map((file) => `  ${file}`).join("\n")}`);
  },
});
