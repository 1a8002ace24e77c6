// Checks the version of Node and installs the packages of package-lock.json, before any other file is loaded.
// Plain JavaScript with old syntax, so that an old Node prints the message below.
// biome-ignore-all lint/style/useNodejsImportProtocol: an old Node does not know the prefix
import { spawnSync } from "child_process";
import { existsSync, readFileSync } from "fs";
import { dirname, join } from "path";
import { fileURLToPath } from "url";

const OLDEST = [20, 19];
const [major, minor] = process.versions.node.split(".").map(Number);
if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) {
  console.error(
    `Lotus needs Node ${OLDEST.join(".")} or newer; this is ${process.versions.node}. Get one from https://nodejs.org.`,
  );
  process.exit(1);
}

const root = fileURLToPath(new URL("..", import.meta.url));

function packagesOf(file) {
  try {
    return JSON.parse(readFileSync(join(root, file), "utf8")).packages;
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
}

const accepts = (list, value) =>
  list === undefined ||
  list.includes(value) ||
  (!list.includes(`!${value}`) && list.every((entry) => entry[0] === "!"));

// npm lists in node_modules/.package-lock.json what it installed. Optional packages of other systems are missing there.
function isInstalled() {
  const wanted = packagesOf("package-lock.json");
  if (wanted === undefined) return true;
  const present = packagesOf("node_modules/.package-lock.json");
  if (present === undefined) return false;
  return Object.entries(wanted).every(([path, { version, optional, os, cpu, libc }]) => {
    if (path === "" || present[path] !== undefined) return path === "" || present[path].version === version;
    if (optional !== true) return false;
    // Without os and cpu it is a dependency of another optional package.
    return (
      (os ?? cpu) === undefined || libc !== undefined || !accepts(os, process.platform) || !accepts(cpu, process.arch)
    );
  });
}

// npm beside this Node. Another package manager may have started the script, and it does not read package-lock.json.
function npm() {
  const given = process.env.npm_execpath;
  if (given !== undefined && /npm-cli\.js$/.test(given)) return [process.execPath, given];
  const beside = [
    join(dirname(process.execPath), "../lib/node_modules/npm/bin/npm-cli.js"),
    join(dirname(process.execPath), "node_modules/npm/bin/npm-cli.js"),
  ].find(existsSync);
  return beside === undefined ? ["npm"] : [process.execPath, beside];
}

if (!isInstalled()) {
  console.error("Installing packages, once (about half a minute) …");
  const [program, ...first] = npm();
  // Development packages too, for every NODE_ENV: tsx and esbuild are among them.
  const { status, error } = spawnSync(program, [...first, "ci", "--include=dev", "--no-audit", "--no-fund"], {
    cwd: root,
    stdio: ["ignore", 2, 2],
    shell: first.length === 0 && process.platform === "win32",
  });
  if (status !== 0) {
    console.error(
      `npm ci failed${error ? `: ${error.message}` : ""}. The lines above name the reason. Check the network and the disk.`,
    );
    process.exit(1);
  }
}
