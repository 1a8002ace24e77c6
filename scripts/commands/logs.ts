/** lotus logs: follows the log lines of a running Lotus. */
import { command } from "../cli/command.ts";
import { folder, readCount, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { runningLotus } from "../local/control-client.ts";
import { pretty } from "../local/log-lines.ts";

const TAIL_MAX = 2_000;

export default command({
  about: "Follows the log lines of a running Lotus, or of one function.",
  usage: "[FUNCTION]",
  options: {
    folder,
    tail: { type: "string", value: "N", about: `begin with the last N lines (0 to ${TAIL_MAX})`, default: "20" },
    json: { type: "boolean", about: "print each line as the function wrote it" },
  },
  async run(values, [name]) {
    const history = readCount("tail", values.tail, 0, TAIL_MAX);
    const lotus = await runningLotus(readFolder(values.folder));
    for await (const event of lotus.events({ name, history })) {
      print(values.json ? event.text : pretty(event.name, event.text));
    }
  },
});
