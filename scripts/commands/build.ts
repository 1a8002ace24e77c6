/** lotus build: bundles the functions into dist/. */
import { buildFunctions, endEsbuild } from "../build/bundles.ts";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { print } from "../cli/output.ts";

export default command({
  about: "Bundles each function into one file of dist/. A function whose inputs did not change keeps its file.",
  usage: "[FUNCTION…]",
  options: {},
  async run(_, names) {
    const began = performance.now();
    const { names: ready, changed, failed } = await buildFunctions(names.length === 0 ? undefined : names);
    await endEsbuild();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    print(`Built ${changed.length} functions into dist/ in ${seconds} s; ${ready.length} are up to date.`);
    if (failed.size === 0) return;
    throw new Refusal([...failed].map(([name, errors]) => `${name} does not compile.\n${errors}`).join("\n"));
  },
});
