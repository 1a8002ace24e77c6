/** lotus images: writes the content of the image, or builds it, pushes it and locks its digest. */
import { relative } from "node:path";
import { CONTEXT, prepareImage } from "../build/image-files.ts";
import { command } from "../cli/command.ts";
import { UsageError } from "../cli/errors.ts";
import { readChoice } from "../cli/options.ts";
import { print, step } from "../cli/output.ts";
import {
  type BuildPlan,
  buildImage,
  commitOf,
  digestOf,
  isInRegistry,
  loadImage,
  pinBase,
  referenceOf,
  versionOf,
} from "../kubernetes/images.ts";
import { LOCK_FILE, readLock, updateLock, writeLock } from "../kubernetes/lock.ts";
import { BASE_DEFAULT, BUILDERS, readArchitectures } from "../kubernetes/options.ts";
import { findBuilder } from "../kubernetes/preflight.ts";
import { findFunctions } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";

export default command({
  about:
    "Writes the content of the image into .lotus/images. With --push it builds and pushes the image and locks its digest.",
  notes: `The registry is asked first: an image with the same content is not built again. ${LOCK_FILE} changes only for functions
whose content changed. Sign the digest with cosign after the push, if the cluster checks signatures.`,
  options: {
    push: {
      type: "string",
      value: "HOST/PATH",
      about: "build the image, push it as HOST/PATH/lotus, and write the lock file",
    },
    base: { type: "string", value: "IMAGE", about: "base of the image", default: BASE_DEFAULT },
    builder: { type: "string", value: "NAME", about: "docker or buildah (default: the first that works)" },
    platform: { type: "string", value: "LIST", about: "architectures of the image", default: "amd64,arm64" },
    source: { type: "string", value: "URL", about: "address of the source code, for a label of the image" },
  },
  async run({ push, base, builder: named, platform, source }) {
    const functions = (await findFunctions()).map(({ name }) => name);
    const version = await versionOf(ROOT);
    if (push === undefined) {
      const { tag } = await prepareImage(functions, base, version);
      return print(`The content of the image is in ${relative(process.cwd(), CONTEXT)}. Its hash is ${tag}.`);
    }
    if (!/^[\w.-]+(:\d+)?(\/[a-z0-9._-]+)*$/.test(push))
      throw new UsageError(`--push must be a host and a path, such as ghcr.io/me; "${push}" is not.`);
    const architectures = readArchitectures(platform);
    const pinned = await pinBase(base);
    const { tag, contents } = await step("Bundles", () => prepareImage(functions, pinned, version));
    const reference = referenceOf(tag, push);
    const commit = await commitOf(ROOT);
    if (await isInRegistry(reference)) print(`  Image: ${reference} is in the registry`);
    else {
      const builder = await findBuilder(
        {
          registry: push,
          loadCommand: undefined,
          builder: named === undefined ? undefined : readChoice("builder", named, BUILDERS),
        },
        undefined,
      );
      const plan: BuildPlan = {
        reference,
        builder,
        base: pinned,
        profile: "",
        architectures,
        source: source ?? "",
        commit,
        version,
      };
      await step(`Image with ${builder}`, () => buildImage(plan));
      await step("Push", () => loadImage(plan, { kind: "registry" }));
    }
    const digest = await digestOf(reference);
    await writeLock(updateLock((await readLock()) ?? new Map(), digest, contents, commit, architectures));
    print(`Locked ${digest} in ${LOCK_FILE}.`);
  },
});
