/** A real PgBouncer in transaction mode, for tests. */
import { spawn } from "node:child_process";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { freePorts } from "../process/ports.ts";

/** The user that PgBouncer runs as, when root starts it: it refuses to run as root. */
const NOBODY = 65534;
const START_MILLISECONDS_MAX = 10_000;
const LOOK_MILLISECONDS = 20;

export interface PgBouncer {
  readonly port: number;
  stop(): Promise<void>;
}

const quote = (text: string) => `"${text.replaceAll('"', '""')}"`;

/**
 * Starts one in front of a port of this machine.
 * @param users passwords by role name
 * @throws {Error} a sentence, when PgBouncer is not installed
 */
export async function startPgBouncer(postgresPort: number, users: ReadonlyMap<string, string>): Promise<PgBouncer> {
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
`;
  await writeFile(join(folder, "users"), [...users].map((user) => user.map(quote).join(" ")).join("\n"));
  await writeFile(join(folder, "pgbouncer.ini"), ini);
  const path = `${process.env.PATH}:/usr/sbin`;
  const identity = process.getuid?.() === 0 ? { uid: NOBODY, gid: NOBODY } : {};
  const child = spawn("pgbouncer", ["-q", join(folder, "pgbouncer.ini")], {
    env: { ...process.env, PATH: path },
    stdio: ["ignore", "ignore", "pipe"],
    ...identity,
  });
  let said = "";
  child.stderr.on("data", (text) => {
    said += text;
  });
  const ended = new Promise<string>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("exit", (code) => resolve(`exit code ${code}: ${said}`));
  });
  let end: string | undefined;
  void ended.then((reason) => {
    end = reason;
  });
  const accepts = () =>
    new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
  const until = performance.now() + START_MILLISECONDS_MAX;
  while (!(await accepts())) {
    if (end === undefined && performance.now() < until) await delay(LOOK_MILLISECONDS);
    else
      throw new Error(
        `PgBouncer did not start (${end ?? said}). Install it (apt-get install pgbouncer), or skip its tests with PGBOUNCER=skip.`,
      );
  }
  return {
    port,
    async stop() {
      child.kill("SIGTERM");
      await ended;
      await rm(folder, { recursive: true, force: true });
    },
  };
}
