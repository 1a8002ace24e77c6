/** lotus images: writes the contents of the images, for another image builder. */
import { relative } from "node:path";
import { CONTEXT, PROGRAM_NAMES, prepareImages } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { print } from "../cli/output.ts";
import { findFunctions } from "../project/functions.ts";

export default command({
  about: "Writes the contents of the images, a folder each, into .lotus/images.",
  options: {},
  async run() {
    const functions = (await findFunctions()).map(({ name }) => name);
    await prepareImages(functions, PROGRAM_NAMES, "");
    print(`Prepared ${functions.length + PROGRAM_NAMES.length} images in ${relative(process.cwd(), CONTEXT)}.`);
  },
});
