#!/usr/bin/env node
// The program `lotus`. Plain JavaScript: it checks the version of Node and the installed packages before it loads TypeScript.
import "./install.mjs";
import "./typescript.mjs";

// A proxy of the environment applies to other hosts. Calls of Lotus to itself stay on this machine.
const direct = [process.env.NO_PROXY ?? process.env.no_proxy, "localhost", "127.0.0.1", "::1"]
  .filter(Boolean)
  .join(",");
process.env.NO_PROXY = direct;
process.env.no_proxy = direct;

const { COMMANDS } = await import("./commands/index.ts");
const { runProgram } = await import("./cli/program.ts");
await runProgram(COMMANDS, process.argv.slice(2));
