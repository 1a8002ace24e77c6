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

/** A change of a library that the build makes while it reads one of its files. */
interface Rewrite {
  readonly file: RegExp;
  rewrite(text: string): string;
}

const REWRITES: Readonly<Record<string, Rewrite>> = {
  // kafkajs clears a buffer of 512 bytes for each header of each record, and then overwrites what it sends.
  "encode-without-clearing": {
    file: /kafkajs[\\/]src[\\/]protocol[\\/]encoder\.js$/,
    rewrite: (text) => text.replaceAll("Buffer.alloc(", "Buffer.allocUnsafe("),
  },
  // The helper of Neon's bundler gives each function its original name, with `Object.defineProperty`, each time that it is created.
  "keep-short-names": {
    file: /@neondatabase[\\/]serverless[\\/]index\.m?js$/,
    rewrite: (text) => text.replace(/\((\w+),(\w+)\)=>\w+\(\1,"name",\{value:\2,configurable:!0\}\)/, "$1=>$1"),
  },
};

/** Makes libraries cheaper at run time. The build ends with an error when a library no longer has the code that a rewrite expects. */
export const rewriteLibraries: Plugin = {
  name: "rewrite-libraries",
  setup({ onLoad }) {
    for (const [name, { file, rewrite }] of Object.entries(REWRITES)) {
      onLoad({ filter: file }, async ({ path }) => {
        const text = await readFile(path, "utf8");
        const contents = rewrite(text);
        if (contents === text) throw new Error(`${path} no longer has the code of ${name}: scripts/build/stubs.ts`);
        return { contents };
      });
    }
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
