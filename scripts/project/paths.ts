/** The places of the checkout that several parts need. */
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder of the checkout. */
export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** The program `lotus`, for child processes. */
export const PROGRAM = join(ROOT, "scripts", "lotus.mjs");

/** A module for `node --import` that lets a process import TypeScript. */
export const TYPESCRIPT = join(ROOT, "scripts", "typescript.mjs");
