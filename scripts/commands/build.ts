/** lotus build: bundles the functions into dist/. */
import { buildFunctions } from "../build/bundles.ts";
import { command } from "../cli/command.ts";
import { print } from "../cli/output.ts";

export default command({
  about: "Bundles each function into dist/, one file each. A function whose inputs did not change stays.",
  usage: "[FUNCTION…]",
  options: {},
  async run(_, names) {
    const began = performance.now();
    const built = await buildFunctions(names.length === 0 ? undefined : names);
    print(`Built ${built.length} functions into dist/ in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
  },
});
