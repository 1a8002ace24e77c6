/** lotus stop: stops a running Lotus and waits for its end. */
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { folder, readFolder } from "../cli/options.ts";
import { print } from "../cli/output.ts";
import { runningLotus } from "../local/control-client.ts";
import { isAlive } from "../process/child.ts";
import { waitFor } from "../process/wait.ts";

const STOP_MILLISECONDS_MAX = 60_000;
const STEP_MILLISECONDS = 100;

export default command({
  about: "Stops a running Lotus as Ctrl-C does: requests in progress finish first.",
  options: { folder },
  async run(values) {
    const lotus = await runningLotus(readFolder(values.folder));
    await lotus.stop();
    const limits = { millisecondsMax: STOP_MILLISECONDS_MAX, stepMilliseconds: STEP_MILLISECONDS };
    if ((await waitFor(() => !isAlive(lotus.pid), limits)) === undefined)
      throw new Refusal(`Lotus (process ${lotus.pid}) still runs after ${STOP_MILLISECONDS_MAX / 1000} s.`);
    print("Lotus has stopped.");
  },
});
