// Lets this process import TypeScript: `node --import ./scripts/typescript.mjs FILE.ts`.
// Node 22.18 and newer strip types by themselves. Older ones use tsx, with a cache that other users of the machine cannot write.
import { mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

if (!process.features.typescript) {
  const { TMPDIR } = process.env;
  // tsx caches what it compiled in a folder of os.tmpdir() and does not check whose folder that is.
  const cache = fileURLToPath(new URL("../node_modules/.cache/lotus-tsx", import.meta.url));
  mkdirSync(cache, { recursive: true, mode: 0o700 });
  process.env.TMPDIR = cache;
  const { register } = await import("tsx/esm/api");
  register();
  if (TMPDIR === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = TMPDIR;
}
