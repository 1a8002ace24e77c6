/**
 * Replaces parts of the functions framework that the listener of Lotus never uses. They would cost time at each start and
 * at each request.
 */
import { readFile } from "node:fs/promises";
import type { Plugin } from "esbuild";

/** The replacement in the bundle, by the name of the import. */
const INSTEAD: Readonly<Record<string, string>> = {
  // Deprecated, and two thirds of the framework's time for a request on Node 20. The endpoint catches the same errors.
  domain: `
    const none = { on() {}, run(work) { work(); }, bind: (callback) => callback };
    process.domain = none;
    module.exports = { create: () => none };`,
  // The listener has read the body, up to its limit, before the framework sees the request.
  "body-parser": `
    const pass = () => (request, response, next) => {
      if (!("body" in request)) request.body = undefined;
      next();
    };
    module.exports = { json: pass, raw: pass, text: pass, urlencoded: pass };`,
  // Connects console.log to a request, on Google's platform. On Node 20 it makes every promise of a request slower.
  "./async_local_storage": `
    module.exports = {
      asyncLocalStorageMiddleware: (request, response, next) => next(),
      getCurrentContext: () => undefined,
    };`,
  // Express loads the types of a thousand file endings; the framework answers in these types only.
  "mime-db": `
    module.exports = {
      "application/json": { source: "iana", charset: "UTF-8", compressible: true, extensions: ["json"] },
      "application/octet-stream": { source: "iana", extensions: ["bin"] },
      "text/html": { source: "iana", compressible: true, extensions: ["html", "htm"] },
      "text/plain": { source: "iana", compressible: true, extensions: ["txt"] },
    };`,
  // Functions do not serve files or read nested query strings.
  qs: unused("qs"),
  send: unused("send"),
  "serve-static": unused("serve-static"),
};

function unused(name: string): string {
  return `module.exports = () => { throw new Error("${name} is not in this bundle: scripts/build/stubs.ts"); };`;
}

const ENCODER = /kafkajs[\\/]src[\\/]protocol[\\/]encoder\.js$/;

/** kafkajs clears a buffer of 512 bytes for each header of each record, and then overwrites what it sends. */
export const encodeWithoutClearing: Plugin = {
  name: "encode-without-clearing",
  setup({ onLoad }) {
    onLoad({ filter: ENCODER }, async ({ path }) => {
      const text = await readFile(path, "utf8");
      const contents = text.replaceAll("Buffer.alloc(", "Buffer.allocUnsafe(");
      if (contents === text) throw new Error(`${path} allocates in another way now: scripts/build/stubs.ts`);
      return { contents };
    });
  },
};

export const leaveOut: Plugin = {
  name: "leave-out",
  setup({ onResolve, onLoad }) {
    const names = Object.keys(INSTEAD).map((name) => name.replaceAll(".", "\\."));
    onResolve({ filter: new RegExp(`^(${names.join("|")})$`) }, ({ path }) => ({ path, namespace: "left-out" }));
    onLoad({ filter: /.*/, namespace: "left-out" }, ({ path }) => ({ contents: INSTEAD[path] ?? "" }));
  },
};
