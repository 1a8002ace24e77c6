/** lotus kill: kills a process of a running Lotus. */
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { folder, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { runningLotus } from "../local/control-client.ts";

export default command({
  about: "Kills the process of a function, of postgres or of kafka with SIGKILL, as a crash would.",
  usage: "NAME",
  notes: "A function starts again at its next request or event. Postgres starts again by itself.",
  options: { folder },
  async run(values, [name, ...rest]) {
    if (name === undefined || rest.length > 0) throw new UsageError("Name one process: npx lotus kill order-pay");
    const lotus = await runningLotus(readFolder(values.folder));
    await lotus.kill(name);
    print(`${name} was killed.`);
  },
});
