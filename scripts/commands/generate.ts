/** lotus generate: writes the files that are generated from the descriptions of the functions. */
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { json } from "../cli/options.ts";
import { print, printJson } from "../cli/output.ts";
import { staleFiles, writeStaleFiles } from "../generate/write.ts";
import { renderedNames, staleRendered, writeRendered } from "../kubernetes/render-files.ts";

export default command({
  about: "Writes Knative manifests, routes, OpenAPI and event schemas from the functions' descriptions.",
  options: {
    check: { type: "boolean", about: "write no file; exit with 1 when one is stale" },
    json,
  },
  async run({ check, json: asJson }) {
    const rendered = await renderedNames();
    const files = check ? await staleFiles() : await writeStaleFiles();
    for (const name of rendered) {
      files.push(...(await staleRendered(name)));
      if (!check) await writeRendered(name);
    }
    if (asJson) printJson(check ? { stale: files } : { written: files });
    if (files.length === 0) return asJson ? undefined : print("The generated files are up to date.");
    const list = files.map((file) => `  ${file}`).join("\n");
    if (check) throw new Refusal(`Generated files are stale. Write them with npm run manifests and commit:\n${list}`);
    if (!asJson) print(`Wrote ${files.length} files:\n${list}`);
  },
});
