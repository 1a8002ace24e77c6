/** A real PgBouncer in transaction mode, for tests and chaos. */
import { spawn } from "node:child_process";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { guardChild } from "../process/child.ts";
import { freePorts } from "../process/ports.ts";
import { waitFor } from "../process/wait.ts";

/** The user that PgBouncer runs as, when root starts it: it refuses to run as root. */
const NOBODY = 65534;
const START_MILLISECONDS_MAX = 10_000;
const LOOK_MILLISECONDS = 20;

export interface PgBouncer {
  readonly port: number;
  /** Sends SIGKILL. */
  kill(): void;
  /** Starts it again, at the same port, after `kill`. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

const quote = (text: string) => `"${text.replaceAll('"', '""')}"`;

/**
 * Starts one in front of a port of this machine.
 * @param users passwords by role name
 * @param more settings, such as { server_round_robin: "1" }
 * @throws {Error} a sentence, when PgBouncer is not installed
 */
export async function startPgBouncer(
  postgresPort: number,
  users: ReadonlyMap<string, string>,
  more: Readonly<Record<string, string>> = {},
): Promise<PgBouncer> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-pgbouncer-"));
  await chmod(folder, 0o755);
  const [port = 0] = await freePorts(1);
  const ini = `[databases]
* = host=127.0.0.1 port=${postgresPort}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = plain
auth_file = ${join(folder, "users")}
pool_mode = transaction
default_pool_size = 4
server_login_retry = 1
${Object.entries(more)
  .map(([name, value]) => `${name} = ${value}\n`)
  .join("")}`;
  await writeFile(join(folder, "users"), [...users].map((user) => user.map(quote).join(" ")).join("\n"));
  await writeFile(join(folder, "pgbouncer.ini"), ini);
  const path = `${process.env.PATH}:/usr/sbin`;
  const identity = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};
  const accepts = () =>
    new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
  const begin = async () => {
    const child = spawn("pgbouncer", ["-q", join(folder, "pgbouncer.ini")], {
      env: { ...process.env, PATH: path },
      stdio: ["ignore", "ignore", "pipe"],
      ...identity,
    });
    guardChild(child);
    let said = "";
    child.stderr.on("data", (text) => {
      said += text;
    });
    let end: string | undefined;
    const ended = new Promise<void>((resolve) => {
      const over = (reason: string) => {
        end = reason;
        resolve();
      };
      child.once("error", (error) => over(error.message));
      child.once("exit", (code) => over(`exit code ${code}: ${said}`));
    });
    const limits = { millisecondsMax: START_MILLISECONDS_MAX, stepMilliseconds: LOOK_MILLISECONDS };
    const started = await waitFor(async () => (await accepts()) || (end === undefined ? undefined : "ended"), limits);
    if (started !== true)
      throw new Error(
        `PgBouncer did not start (${end ?? said}). Install it (apt-get install pgbouncer), or skip its tests with PGBOUNCER=skip.`,
      );
    return { child, ended };
  };
  let running = await begin();
  return {
    port,
    kill: () => void running.child.kill("SIGKILL"),
    async restart() {
      await running.ended;
      running = await begin();
    },
    async stop() {
      running.child.kill("SIGTERM");
      await running.ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}
