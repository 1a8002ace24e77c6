/**
 * dist/<name>.cjs, the file of a function that is started: runs the bundle beside it. It hands V8 what V8 compiled in an
 * earlier process, functions that the first answer needs included, which is half of a start. Where there is nothing of that
 * kind, it is kept when the process has ended well; where nothing can be written, the start only takes longer.
 */
import { createHash } from "node:crypto";
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { wrap } from "node:module";
import { join } from "node:path";
import { Script } from "node:vm";

/** scripts/build/bundles.ts sets both: the file of the bundle, and the file of its cache, named by a hash of the bundle. */
declare const BUNDLE: string;
declare const COMPILED: string;
/** Whether another program loads this file, as functions load telemetry.cjs. */
declare const LIBRARY: boolean;

const bundle = join(__dirname, BUNDLE);
/** V8 refuses the cache of another V8. A name per version keeps two versions from replacing each other's cache. */
const compiled = join(__dirname, `${COMPILED}.${process.version}-${process.arch}.cache`);

/** A checksum begins the file: V8 does not detect a damaged byte, and ends the process. */
const checksum = (data: Uint8Array) => createHash("sha256").update(data).digest();
const CHECKSUM_BYTES = 32;

function readCompiled(): Buffer | undefined {
  try {
    const file = readFileSync(compiled);
    const data = file.subarray(CHECKSUM_BYTES);
    return checksum(data).equals(file.subarray(0, CHECKSUM_BYTES)) ? data : undefined;
  } catch {
    return undefined;
  }
}

function keepCompiled(script: Script): void {
  const data = script.createCachedData();
  // A process that starts meanwhile reads the complete file or none.
  const written = `${compiled}.${process.pid}`;
  try {
    writeFileSync(written, Buffer.concat([checksum(data), data]));
    renameSync(written, compiled);
  } catch {
    rmSync(written, { force: true });
  }
}

const cachedData = readCompiled();
// The bundle is ASCII, so latin1 reads it correctly, and fastest.
const script = new Script(wrap(readFileSync(bundle, "latin1")), {
  filename: bundle,
  ...(cachedData && { cachedData }),
});
// Only in a function's process: the framework's command line compiles other parts.
if (script.cachedDataRejected !== false && (LIBRARY || require.main === module)) {
  const { setFlagsFromString } = require("node:v8") as typeof import("node:v8");
  // V8 drops code that has not run for a while, such as the code of the start, which the next start needs.
  setFlagsFromString("--no-flush-bytecode");
  process.once("exit", (code) => {
    // V8 refuses code that was compiled under other flags.
    setFlagsFromString("--flush-bytecode");
    if (code === 0) keepCompiled(script);
  });
}
script.runInThisContext()(exports, require, module, __filename, __dirname);
