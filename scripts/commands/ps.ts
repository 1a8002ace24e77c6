/** lotus ps: lists the processes of a running Lotus. */
import { command } from "../cli/command.ts";
import { folder, json, readFolder } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { runningLotus } from "../local/control-client.ts";

export default command({
  about: "Lists the functions of a running Lotus, with Postgres and Kafka: state, process, requests, starts.",
  options: { folder, json },
  async run(values) {
    const lotus = await runningLotus(readFolder(values.folder));
    const processes = await lotus.processes();
    if (values.json) return printJson(processes);
    const cell = (value: number | string | undefined) => (value === undefined ? "" : String(value));
    const rows = processes.map(({ name, state, pid, port, inFlight, starts, startMilliseconds, call }) => [
      name,
      state,
      ...[pid, port, inFlight, starts].map(cell),
      startMilliseconds === undefined ? "" : `${Math.round(startMilliseconds)} ms`,
      cell(call),
    ]);
    print(table([["name", "state", "pid", "port", "requests", "starts", "last start", "call"], ...rows]));
  },
});
