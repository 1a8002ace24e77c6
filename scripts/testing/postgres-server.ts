/** A Postgres for tests whose databases differ in the login that they ask for. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { chmod, chown, cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import { Client, escapeIdentifier, escapeLiteral } from "pg";
import { startPostgres } from "../local/postgres.ts";

const CERTIFICATES = join(import.meta.dirname, "certificates");
/** The user that startPostgres runs the server as, when root starts it. */
export const NOBODY = 65534;
const LOOK_MILLISECONDS = 20;

/** The certificate authority of the server, and another one. */
export const AUTHORITY = join(CERTIFICATES, "authority.pem");
export const OTHER_AUTHORITY = join(CERTIFICATES, "other-authority.pem");

/** Logins by database. Every other database asks for SCRAM, with or without TLS. */
const HBA = `
hostssl   scram_tls all 127.0.0.1/32 scram-sha-256
hostnossl scram_tls all 127.0.0.1/32 reject
host      md5       all 127.0.0.1/32 md5
host      clear     all 127.0.0.1/32 password
host      trusted   all 127.0.0.1/32 trust
host      all,replication all 127.0.0.1/32 scram-sha-256
`;

export interface TestPostgres {
  readonly port: number;
  /** Connected to the database postgres as the superuser. */
  readonly superuser: Client;
  /** Where the server's user may write files. */
  readonly folder: string;
  /**
   * Creates a database with an owner of the same name.
   * @param options the options of the owner, such as "createrole"
   * @returns the owner's URL at 127.0.0.1, without parameters
   */
  createDatabase(name: string, options?: string, password?: string): Promise<string>;
  /** Connects to a database as the superuser. The caller ends the connection. */
  connect(database: string): Promise<Client>;
  /** Ends the server as a crash does: it warns no session and writes no checkpoint. Closes `superuser`. */
  crash(): Promise<void>;
  /** Starts the server again after `crash`, at the same port, with a new `superuser`. */
  restart(): Promise<void>;
  /** Starts a standby that confirms each commit of this server. Its user and databases are the same. */
  startStandby(): Promise<TestStandby>;
  stop(): Promise<void>;
}

/** A read-only copy of a server that follows it. */
export interface TestStandby {
  readonly port: number;
  /** Ends the recovery: the standby follows no other server and accepts writes. */
  promote(): Promise<void>;
  stop(): Promise<void>;
}

/** fs.cp copies no owner, and the server's files belong to the user that it runs as. */
const copy = (from: string, to: string) => promisify(execFile)("cp", ["-a", from, to]);

/**
 * Starts a server with TLS in a new folder.
 * @param more settings, such as { autovacuum: "off" }
 */
export async function startTestPostgres(more: Readonly<Record<string, string>> = {}): Promise<TestPostgres> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-postgres-"));
  await chmod(folder, 0o711);
  await writeFile(join(folder, "hba.conf"), HBA, { mode: 0o644 });
  for (const file of ["server.pem", "server.key"]) await cp(join(CERTIFICATES, file), join(folder, file));
  await chmod(join(folder, "server.key"), 0o600);
  if (process.getuid?.() === 0) await chown(join(folder, "server.key"), NOBODY, NOBODY);
  const settings = {
    hba_file: join(folder, "hba.conf"),
    ssl: "on",
    ssl_cert_file: join(folder, "server.pem"),
    ssl_key_file: join(folder, "server.key"),
    fsync: "off",
    ...more,
  };
  const flagsOf = (values: Readonly<Record<string, string>>) =>
    Object.entries(values).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
  const data = join(folder, "postgres");
  let postgres = await startPostgres(data, flagsOf(settings));
  const passwords = JSON.parse(await readFile(join(data, "passwords.json"), "utf8"));
  const connect = async (database: string, port = postgres.port) => {
    const ssl = database === "scram_tls" && { rejectUnauthorized: false };
    const client = new Client({
      host: "127.0.0.1",
      port,
      user: "postgres",
      password: passwords.superuser,
      database,
      ssl,
    });
    client.on("error", () => undefined);
    await client.connect();
    return client;
  };
  let superuser = await connect("postgres");
  return {
    port: postgres.port,
    get superuser() {
      return superuser;
    },
    folder,
    connect: (database) => connect(database),
    async createDatabase(name, options = "createrole", password = "owner") {
      const owner = escapeIdentifier(name);
      if (name === "md5") await superuser.query("set password_encryption = md5");
      await superuser.query(`create role ${owner} login ${options} password ${escapeLiteral(password)}`);
      await superuser.query("reset password_encryption");
      await superuser.query(`create database ${owner} owner ${owner}`);
      return `postgres://${encodeURIComponent(name)}:${encodeURIComponent(password)}@127.0.0.1:${postgres.port}/${encodeURIComponent(name)}`;
    },
    async crash() {
      const ended = once(postgres.process, "exit");
      postgres.process.kill("SIGQUIT");
      await ended;
      await superuser.end();
    },
    async restart() {
      postgres = await startPostgres(data, flagsOf(settings), postgres.port);
      superuser = await connect("postgres");
    },
    async startStandby() {
      const copied = join(folder, "standby");
      await superuser.query("select pg_backup_start('standby', true)");
      await copy(data, copied);
      const { rows } = await superuser.query("select labelfile from pg_backup_stop()");
      const files = join(copied, "data");
      await rm(join(files, "postmaster.pid"));
      for (const [name, text] of [
        ["backup_label", rows[0].labelfile],
        ["standby.signal", ""],
      ]) {
        await writeFile(join(files, name), text);
        if (process.getuid?.() === 0) await chown(join(files, name), NOBODY, NOBODY);
      }
      const source = `host=127.0.0.1 port=${postgres.port} user=postgres password=${passwords.superuser} application_name=standby`;
      const standby = await startPostgres(copied, flagsOf({ ...settings, primary_conninfo: source }));
      await superuser.query("alter system set synchronous_standby_names = standby");
      await superuser.query("select pg_reload_conf()");
      const state = "select from pg_stat_replication where sync_state = 'sync'";
      while ((await superuser.query(state)).rowCount === 0) await delay(LOOK_MILLISECONDS);
      return {
        port: standby.port,
        async promote() {
          const client = await connect("postgres", standby.port);
          await client.query("alter system reset synchronous_standby_names");
          await client.query("select pg_reload_conf()");
          await client.query("select pg_promote()");
          await client.end();
        },
        stop: () => standby.stop(),
      };
    },
    async stop() {
      await superuser.end();
      await postgres.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
