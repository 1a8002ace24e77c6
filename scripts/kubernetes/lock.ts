/** knative/images.lock.yaml: the image of each function and program by digest. CI writes it, and environments promote it. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { parse, stringify } from "yaml";
import { Refusal } from "../cli/errors.ts";
import { ROOT } from "../project/paths.ts";
import type { ImageUse } from "./plan.ts";

export const LOCK_FILE = "knative/images.lock.yaml";

const HEADER =
  "# Written by `npx lotus images --push REPOSITORY`. An entry changes only when the content of its function changes.\n";

const Lock = v.strictObject({
  images: v.record(
    v.string(),
    v.strictObject({
      image: v.pipe(v.string(), v.regex(/^[^\s@]+@sha256:[0-9a-f]{64}$/, "repository@sha256:…")),
      content: v.pipe(v.string(), v.regex(/^[0-9a-f]{16}$/, "16 hexadecimal digits")),
      commit: v.optional(v.string()),
      architectures: v.optional(v.array(v.string())),
    }),
  ),
});

/**
 * Reads the text of a lock file.
 * @throws {Refusal} a sentence for the first wrong field
 */
export function parseLock(text: string): Map<string, ImageUse> {
  const result = v.safeParse(Lock, parse(text) ?? {});
  if (!result.success) {
    const [issue] = result.issues;
    throw new Refusal(
      `${LOCK_FILE}: ${v.getDotPath(issue)} must be ${issue.message}. Write the file again: npx lotus images --push REPOSITORY`,
    );
  }
  return new Map(
    Object.entries(result.output.images).map(([name, { image, content, commit, architectures }]) => [
      name,
      {
        reference: image,
        content,
        ...(commit !== undefined && { commit }),
        ...(architectures !== undefined && { architectures }),
      },
    ]),
  );
}

/** Reads the lock file. Undefined: the checkout has none. */
export async function readLock(): Promise<Map<string, ImageUse> | undefined> {
  const text = await readFile(join(ROOT, LOCK_FILE), "utf8").catch(() => undefined);
  return text === undefined ? undefined : parseLock(text);
}

/**
 * Returns the entries after a build. A function with the same content keeps its former image, and so its revision, when that image
 * has every architecture of the new one.
 */
export function updateLock(
  former: ReadonlyMap<string, ImageUse>,
  image: string,
  contents: ReadonlyMap<string, string>,
  commit: string,
  architectures: readonly string[],
): Map<string, ImageUse> {
  const repository = image.slice(0, image.indexOf("@"));
  return new Map(
    [...contents].map(([name, content]) => {
      const before = former.get(name);
      const isSame =
        before?.content === content &&
        before.reference.startsWith(`${repository}@`) &&
        architectures.every((architecture) => before.architectures?.includes(architecture));
      return [name, isSame ? before : { reference: image, content, commit, architectures }];
    }),
  );
}

/** Returns a sentence for each architecture of nodes that a locked image lacks. */
export function architectureFaults(nodes: readonly string[], locked: ReadonlyMap<string, ImageUse>): string[] {
  return nodes.flatMap((architecture) => {
    const lacking = [...locked].filter(
      ([, { architectures }]) => architectures !== undefined && !architectures.includes(architecture),
    );
    if (lacking.length === 0) return [];
    return [
      `The cluster has nodes of the architecture ${architecture}, and the locked images of ${lacking.map(([name]) => name).join(", ")} do not have it. ` +
        `Build them for it: npx lotus images --push REPOSITORY --platform ${[...new Set([...(lacking[0]?.[1].architectures ?? []), architecture])].join(",")}`,
    ];
  });
}

/** Writes the lock file. */
export async function writeLock(images: ReadonlyMap<string, ImageUse>): Promise<void> {
  const entries = [...images]
    .sort(([a], [b]) => a.localeCompare(b))
    .map(([name, { reference, content, commit, architectures }]) => [
      name,
      { image: reference, content, ...(commit && { commit }), ...(architectures && { architectures }) },
    ]);
  await writeFile(join(ROOT, LOCK_FILE), HEADER + stringify({ images: Object.fromEntries(entries) }, { lineWidth: 0 }));
}

/**
 * Returns the images of all functions and programs from the lock file.
 * @throws {Refusal} when the file or an entry is missing
 */
export async function lockedImages(names: readonly string[]): Promise<Map<string, ImageUse>> {
  const lock = await readLock();
  const advice = "CI writes it: npx lotus images --push REPOSITORY";
  if (lock === undefined) throw new Refusal(`${LOCK_FILE} is missing. ${advice}`);
  const missing = names.filter((name) => !lock.has(name));
  if (missing.length > 0) throw new Refusal(`${LOCK_FILE} has no entry for ${missing.join(", ")}. ${advice}`);
  return lock;
}
