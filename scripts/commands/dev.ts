/** lotus dev: runs everything on this machine and serves every edit. */
import { command } from "../cli/command.ts";
import { print } from "../cli/output.ts";
import { writeStaleFiles } from "../generate/write.ts";
import { runLotus, START_OPTIONS } from "./start.ts";

export default command({
  about: "Runs everything on this machine and serves every edit at the next request.",
  options: START_OPTIONS,
  async run(values) {
    const written = await writeStaleFiles();
    if (written.length > 0) print(`Wrote ${written.join(", ")}.`);
    await runLotus(values, { watch: true });
  },
});
