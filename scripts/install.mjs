// Runs before `npm start`, `npm test` and other commands that one may begin with: is this Node new enough, and are the packages those of package-lock.json?
// Plain JavaScript, in the words of old Nodes as well: it runs before anything is installed.
// biome-ignore-all lint/style/useNodejsImportProtocol: an old Node does not know it, and would not come to the sentence below
import { spawnSync } from "child_process";
import { createHash } from "crypto";
import { existsSync, readFileSync, writeFileSync } from "fs";
import { fileURLToPath } from "url";

const OLDEST = [20, 19];
const [major, minor] = process.versions.node.split(".").map(Number);
if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) {
  console.error(
    `Lotus needs Node ${OLDEST.join(".")} or newer; this is ${process.versions.node}. Get one from https://nodejs.org.`,
  );
  process.exit(1);
}

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const MARK = "node_modules/.lotus-installed";
const wanted = createHash("sha256")
  .update(readFileSync("package-lock.json"))
  .update(`${process.platform} ${process.arch}`)
  .digest("hex");
const installed = existsSync(MARK) && readFileSync(MARK, "utf8") === wanted;
if (!installed) {
  console.log("Installing packages, once (about half a minute) …");
  const npm = process.env.npm_execpath;
  const command = npm === undefined ? ["npm"] : [process.execPath, npm];
  // Not `npm ci`: it insists on packages for other systems, which a registry mirror need not have. --no-save keeps the lock file.
  const { status, error } = spawnSync(
    command[0],
    command.slice(1).concat("install", "--no-save", "--no-audit", "--no-fund"),
    {
      stdio: "inherit",
      shell: npm === undefined && process.platform === "win32",
    },
  );
  if (status !== 0) {
    console.error(
      `npm install failed${error ? `: ${error.message}` : ""}. The lines above say why; the network and the disk are the usual reasons.`,
    );
    process.exit(1);
  }
  writeFileSync(MARK, wanted);
}
