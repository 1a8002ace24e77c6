/**
 * Runs each function once while the image is built, with the Node of the image. The image then contains V8's compiled code,
 * because a pod's file system is read-only. The functions run up to their first statement: the build has no database.
 */
import { fork } from "node:child_process";
import { generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathOf } from "#kernel/endpoint";
import { TOKEN_AUDIENCE, TOKEN_ISSUER } from "#kernel/settings";

const MILLISECONDS_MAX = 30_000;
/** Functions that run at the same time. */
const AT_ONCE = 2;
/** V8 writes equal bytes for equal code when its random seed is equal. V8 accepts such a cache in a process without the flag. */
const FLAGS = ["--random-seed=1"];
const ID = "00000000-0000-4000-8000-000000000000";

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

async function rehearse(program: string, path: string, folder: string): Promise<void> {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const about = { kid: "rehearsal", alg: "EdDSA", use: "sig" };
  writeFileSync(
    join(folder, "public"),
    JSON.stringify({ keys: [{ ...publicKey.export({ format: "jwk" }), ...about }] }),
  );
  writeFileSync(join(folder, "private"), JSON.stringify({ ...privateKey.export({ format: "jwk" }), ...about }));
  const claims = { sub: ID, email: "ada@example.com", iss: TOKEN_ISSUER, aud: TOKEN_AUDIENCE, exp: 4_000_000_000 };
  const signed = `${encode({ alg: "EdDSA", kid: about.kid })}.${encode(claims)}`;
  const child = fork(program, [], {
    env: {
      PORT: "0",
      DATABASE_URL: "postgres://nobody:nothing@127.0.0.1:1/none",
      JWKS_FILE: join(folder, "public"),
      SIGNING_KEY_FILE: join(folder, "private"),
      // Compiles telemetry.cjs too. No collector listens there.
      OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1",
    },
    execArgv: FLAGS,
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
  const ended = once(child, "exit");
  setTimeout(() => child.kill("SIGKILL"), MILLISECONDS_MAX).unref();
  const [message] = await Promise.race([once(child, "message"), ended.then(() => [])]);
  if (message === undefined) throw new Error("it did not start");
  const headers = {
    authorization: `Bearer ${signed}.${sign(null, Buffer.from(signed), privateKey).toString("base64url")}`,
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": ID,
    "ce-source": "/rehearsal",
    "ce-type": "rehearsal",
    connection: "close",
  };
  const url = `http://127.0.0.1:${message.port}${path}`;
  for (const init of [{}, { method: "POST", body: "{}" }]) await (await fetch(url, { headers, ...init })).arrayBuffer();
  child.kill("SIGTERM");
  await ended;
}

async function rehearseIn(folder: string): Promise<void> {
  const bundle = readdirSync(folder).find((file) => file.endsWith(".bundle.cjs") && file !== "telemetry.bundle.cjs");
  // The programs of jobs are not functions.
  if (bundle === undefined) return;
  const keys = mkdtempSync(join(folder, "rehearsal-"));
  try {
    await rehearse(join(folder, "function.cjs"), pathOf(bundle.replace(".bundle.cjs", "")), keys);
  } finally {
    rmSync(keys, { recursive: true });
  }
}

const folders = readdirSync(__dirname, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => join(__dirname, name));
const worker = async () => {
  for (let folder = folders.shift(); folder !== undefined; folder = folders.shift()) {
    const name = folder;
    // A function without the cache starts as well, only later.
    await rehearseIn(name).catch((error: Error) => console.error(`The rehearsal of ${name} failed: ${error.message}`));
  }
};
void Promise.all(Array.from({ length: AT_ONCE }, worker));
