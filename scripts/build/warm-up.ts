/**
 * Runs each function once while the image is built, with the Node of the image. The image then contains V8's compiled code,
 * because a pod's file system is read-only. The functions run up to their first statement, which is refused. All that
 * runs here must run in the same way in every build, so that two builds have equal bytes: no retries, no timers, no exports.
 * With `--telemetry FOLDER` it compiles the exporter of one folder, and with `--renumber FOLDER` it makes its caches equal in every build.
 */
import { type ChildProcess, fork } from "node:child_process";
import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { wrap } from "node:module";
import { type AddressInfo, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { Script } from "node:vm";
import { pathOf } from "#kernel/endpoint";
import { TOKEN_AUDIENCE, TOKEN_ISSUER } from "#kernel/limits";
import type { SpanRecord, TelemetryModule } from "#kernel/telemetry";

const MILLISECONDS_MAX = 30_000;
/** Functions that run at the same time. */
const AT_ONCE = 2;
/**
 * V8 writes equal bytes for equal code when its random seed is equal. Sparkplug marks functions at times that depend on the machine,
 * and the cache contains the marks.
 */
const FLAGS = ["--random-seed=1", "--no-sparkplug"];
const TELEMETRY = "--telemetry";
const RENUMBER = "--renumber";
/** A checksum begins the file of a cache: start-cache.ts. */
const CHECKSUM_BYTES = 32;
const ID = "00000000-0000-4000-8000-000000000000";

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

/**
 * Starts the exporter and ends in the same turn of the event loop. An export would compile functions at times that depend on the
 * machine, and two builds would differ.
 */
function compileTelemetry(folder: string): void {
  const { startExporter } = require(join(folder, "telemetry.cjs")) as TelemetryModule;
  const exporter = startExporter({
    service: "rehearsal",
    traces: true,
    metrics: true,
    shutdownMillisecondsMax: 0,
    warningMillisecondsMin: 0,
    warn: () => undefined,
  });
  const span: SpanRecord = {
    record: "span",
    name: "rehearsal",
    kind: "server",
    traceId: "1".repeat(32),
    spanId: "1".repeat(16),
    sampled: true,
    parentSpanId: "2".repeat(16),
    start: 0,
    end: 1,
    attributes: { rehearsal: true },
    events: [{ name: "rehearsal", time: 0 }],
    links: [],
    failed: false,
  };
  exporter.accept(span);
  exporter.accept({ record: "measurement", metric: "http.server.request.duration", value: 0, attributes: {} });
  process.exit(0);
}

/**
 * Reads each cache of a folder and writes it again. V8 numbers the functions of a process in the order in which it compiles them,
 * Node's own functions among them, and their order depends on the machine. A process that only reads a cache numbers them in the
 * order of the cache.
 */
function renumber(folder: string): void {
  for (const file of readdirSync(folder)) {
    const [name] = /^[^.]+(?=\.\w+\..*cache$)/.exec(file) ?? [];
    if (name === undefined) continue;
    const bundle = join(folder, `${name}.bundle.cjs`);
    const cachedData = readFileSync(join(folder, file)).subarray(CHECKSUM_BYTES);
    const script = new Script(wrap(readFileSync(bundle, "latin1")), { filename: bundle, cachedData });
    if (script.cachedDataRejected) throw new Error(`V8 does not accept ${file}`);
    // A function runs with Sparkplug, and V8 refuses a cache of other flags.
    setFlagsFromString("--sparkplug");
    const data = script.createCachedData();
    setFlagsFromString("--no-sparkplug");
    writeFileSync(join(folder, file), Buffer.concat([createHash("sha256").update(data).digest(), data]));
  }
}

/** Waits for a process. Returns its exit code; null when a signal ended it. */
async function endOf(child: ChildProcess): Promise<number | null> {
  const late = setTimeout(() => child.kill("SIGKILL"), MILLISECONDS_MAX);
  const [code] = (await once(child, "exit")) as [number | null];
  clearTimeout(late);
  return code;
}

/** A message of Postgres (protocol 3.0): type, length and content. */
function message(type: string, content: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeInt32BE(content.length + 4, 1);
  return Buffer.concat([head, content]);
}

const READY = message("Z", Buffer.from("I"));
const ACCEPTED = Buffer.concat([message("R", Buffer.alloc(4)), READY]);
/** The code is insufficient_privilege: functions do not try again. */
const REFUSED = Buffer.concat([
  message("E", Buffer.from(["SERROR", "VERROR", "C42501", "Mrehearsal", ""].map((field) => `${field}\0`).join(""))),
  READY,
]);

/** Accepts the login, and refuses each statement: each `Query`, and each `Sync` after an extended query. */
function answer(socket: Socket): void {
  let received = Buffer.alloc(0);
  let isOpen = false;
  socket.setNoDelay(true).on("error", () => undefined);
  socket.on("data", (data: Buffer) => {
    received = Buffer.concat([received, data]);
    for (;;) {
      const at = isOpen ? 1 : 0;
      const end = received.length < at + 4 ? Number.POSITIVE_INFINITY : at + received.readInt32BE(at);
      if (received.length < end) return;
      const type = received.toString("latin1", 0, at);
      if (!isOpen) socket.write(ACCEPTED);
      else if (type === "Q" || type === "S") socket.write(REFUSED);
      isOpen = true;
      received = received.subarray(end);
    }
  });
}

/** A Postgres that refuses every statement. */
async function startDatabase(): Promise<Server> {
  const server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

async function rehearse(program: string, path: string, folder: string, database: number): Promise<void> {
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
      DATABASE_URL: `postgres://nobody:nothing@127.0.0.1:${database}/none`,
      JWKS_FILE: join(folder, "public"),
      SIGNING_KEY_FILE: join(folder, "private"),
      // The function then compiles its code of spans. No collector listens there.
      OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:1",
    },
    execArgv: FLAGS,
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
  const ended = once(child, "exit");
  setTimeout(() => child.kill("SIGKILL"), MILLISECONDS_MAX).unref();
  const [listening] = await Promise.race([once(child, "message"), ended.then(() => [])]);
  if (listening === undefined) throw new Error("it did not start");
  const headers = {
    authorization: `Bearer ${signed}.${sign(null, Buffer.from(signed), privateKey).toString("base64url")}`,
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": ID,
    "ce-source": "/rehearsal",
    "ce-type": "rehearsal",
    connection: "close",
  };
  const url = `http://127.0.0.1:${listening.port}${path}`;
  for (const init of [{}, { method: "POST", body: "{}" }]) await (await fetch(url, { headers, ...init })).arrayBuffer();
  child.kill("SIGTERM");
  await ended;
}

async function rehearseIn(folder: string, database: number): Promise<void> {
  const bundle = readdirSync(folder).find((file) => file.endsWith(".bundle.cjs") && file !== "telemetry.bundle.cjs");
  // The programs of jobs are not functions.
  if (bundle === undefined) return;
  const keys = mkdtempSync(join(folder, "rehearsal-"));
  const exporter = join(folder, "telemetry.cjs");
  const original = readFileSync(exporter);
  try {
    // The function compiles its code of spans, and hands them to an exporter that does nothing.
    writeFileSync(exporter, "exports.startExporter = () => ({ accept() {}, async shutdown() {} });");
    await rehearse(join(folder, "function.cjs"), pathOf(bundle.replace(".bundle.cjs", "")), keys, database).finally(
      () => writeFileSync(exporter, original),
    );
    for (const option of [TELEMETRY, RENUMBER]) {
      const code = await endOf(fork(__filename, [option, folder], { execArgv: FLAGS, stdio: "inherit", env: {} }));
      if (code === 0) continue;
      console.error(`The process ${option} of ${folder} ended with ${code ?? "a signal"}.`);
      // The caches would differ in each build, so the build fails. Without the exporter's cache, a function starts more slowly.
      if (option === RENUMBER) process.exitCode = 1;
    }
  } finally {
    rmSync(keys, { recursive: true });
  }
}

async function rehearseAll(): Promise<void> {
  const server = await startDatabase();
  const { port } = server.address() as AddressInfo;
  const folders = readdirSync(__dirname, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => join(__dirname, name));
  const worker = async () => {
    for (let folder = folders.shift(); folder !== undefined; folder = folders.shift()) {
      const name = folder;
      // A function also starts without the cache, but more slowly.
      await rehearseIn(name, port).catch((error: Error) =>
        console.error(`The warm-up of ${name} failed: ${error.message}`),
      );
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  server.close();
}

const [option, only] = process.argv.slice(2);
if (option === TELEMETRY && only !== undefined) compileTelemetry(only);
else if (option === RENUMBER && only !== undefined) renumber(only);
else void rehearseAll();
