/** The files of the page: bundled by esbuild at the first request, kept in memory, and served with the headers that confine them. */
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { build } from "esbuild";
import { ROOT } from "../project/paths.ts";

/** The address below which the console has its files and its API. */
export const CONSOLE_PATH = "/console/";
const PAGE = join(ROOT, "scripts", "console", "page");
const SWAGGER_FILES = ["swagger-ui.css", "swagger-ui-bundle.js"];

const SELF = "script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; worker-src 'self'";
const CONFINED = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/** The page creates one script address by itself: that of its shared worker. */
const PAGE_POLICY = `default-src 'none'; ${SELF}; ${CONFINED}; require-trusted-types-for 'script'; trusted-types lotus`;
/** Swagger UI writes HTML by itself, so trusted types are off for it. */
const DOCS_POLICY = `default-src 'none'; ${SELF}; font-src 'self' data:; ${CONFINED}`;

/** A file in memory. */
export interface Asset {
  readonly type: string;
  readonly body: Uint8Array | string;
}

const TYPES: Readonly<Record<string, string>> = {
  js: "text/javascript; charset=utf-8",
  css: "text/css; charset=utf-8",
  svg: "image/svg+xml; charset=utf-8",
};
const typeOf = (file: string) => TYPES[file.split(".").at(-1) ?? ""] ?? "application/octet-stream";

/** Returns the headers of an answer of the console. @param policy the content security policy of a document */
export function securityHeaders(policy?: "page" | "docs"): Record<string, string> {
  return {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    ...(policy !== undefined && { "content-security-policy": policy === "page" ? PAGE_POLICY : DOCS_POLICY }),
  };
}

/** Bundles the page. Returns its files by name. */
export async function bundlePage(): Promise<Map<string, Asset>> {
  const common = { bundle: true, minify: true, write: false, target: "es2022", absWorkingDir: ROOT } as const;
  const [page, worker] = await Promise.all([
    build({
      ...common,
      entryPoints: { page: join(PAGE, "main.tsx"), docs: join(PAGE, "docs.ts") },
      outdir: "/console",
      format: "esm",
      splitting: true,
      jsx: "automatic",
      jsxImportSource: "preact",
    }),
    build({ ...common, entryPoints: { worker: join(PAGE, "worker.ts") }, outdir: "/console", format: "iife" }),
  ]);
  return new Map(
    [...page.outputFiles, ...worker.outputFiles].map(({ path, contents }) => [
      basename(path),
      { type: typeOf(path), body: contents },
    ]),
  );
}

/** Reads the files of the API reference. */
async function readSwagger(): Promise<Map<string, Asset>> {
  const folder = dirname(createRequire(import.meta.url).resolve("swagger-ui-dist/package.json"));
  return new Map(
    await Promise.all(
      SWAGGER_FILES.map(
        async (file) => [file, { type: typeOf(file), body: await readFile(join(folder, file)) }] as const,
      ),
    ),
  );
}

const ICON = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#8a2f63"/><g fill="#fff"><path d="M16 5c4 4 5 9 0 16-5-7-4-12 0-16z"/><path d="M4 13c6 0 10 3 12 10-8 2-12-3-12-10z" opacity=".8"/><path d="M28 13c-6 0-10 3-12 10 8 2 12-3 12-10z" opacity=".8"/></g></svg>`;

const head = (title: string, styles: string) => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<link rel="icon" href="${CONSOLE_PATH}icon.svg">
${styles}`;

/** Returns the page. @param token shows that a changing call comes from this page */
export function pageHtml(token: string): string {
  return `${head("Lotus local", `<link rel="stylesheet" href="${CONSOLE_PATH}page.css">`)}
<meta name="lotus-token" content="${token}">
<script type="module" src="${CONSOLE_PATH}page.js"></script>
</head>
<body><div id="app"></div><noscript>The console needs JavaScript.</noscript></body>
</html>
`;
}

/** Returns the page of the API reference. */
export function docsHtml(): string {
  const styles = ["swagger-ui.css", "docs.css"].map((file) => `<link rel="stylesheet" href="${CONSOLE_PATH}${file}">`);
  return `${head("Lotus API reference", styles.join("\n"))}
<script src="${CONSOLE_PATH}swagger-ui-bundle.js" defer></script>
<script type="module" src="${CONSOLE_PATH}docs.js"></script>
</head>
<body><header class="back"><a href="/">← Lotus local</a></header><h1 class="hidden">API reference</h1><div id="docs"></div></body>
</html>
`;
}

/** Keeps the files of the page. They are made at the first request, so the start of Lotus is not slower. */
export class Assets {
  #page: Promise<Map<string, Asset>> | undefined;
  #swagger: Promise<Map<string, Asset>> | undefined;

  /** Returns a file; undefined when the console has none of that name. */
  async get(name: string): Promise<Asset | undefined> {
    if (name === "icon.svg") return { type: typeOf(name), body: ICON };
    if (SWAGGER_FILES.includes(name)) {
      this.#swagger ??= readSwagger();
      return (await this.#swagger).get(name);
    }
    this.#page ??= bundlePage();
    return (await this.#page).get(name);
  }
}
