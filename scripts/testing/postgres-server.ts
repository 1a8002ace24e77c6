/** A Postgres for tests whose databases differ in the login that they ask for. */
import { chmod, chown, cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, escapeIdentifier, escapeLiteral } from "pg";
import { startPostgres } from "../local/postgres.ts";

const CERTIFICATES = join(import.meta.dirname, "certificates");
/** The user that startPostgres runs the server as, when root starts it. */
const NOBODY = 65534;

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
host      all       all 127.0.0.1/32 scram-sha-256
`;

export interface TestPostgres {
  readonly port: number;
  /** Connected to the database postgres as the superuser. */
  readonly superuser: Client;
  /**
   * Creates a database with an owner of the same name.
   * @param options the options of the owner, such as "createrole"
   * @returns the owner's URL at 127.0.0.1, without parameters
   */
  createDatabase(name: string, options?: string, password?: string): Promise<string>;
  /** Connects to a database as the superuser. The caller ends the connection. */
  connect(database: string): Promise<Client>;
  stop(): Promise<void>;
}

/** Starts a server with TLS in a new folder. */
export async function startTestPostgres(): Promise<TestPostgres> {
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
  };
  const data = join(folder, "postgres");
  const postgres = await startPostgres(
    data,
    Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]),
  );
  const passwords = JSON.parse(await readFile(join(data, "passwords.json"), "utf8"));
  const connect = async (database: string) => {
    const { port } = postgres;
    const ssl = database === "scram_tls" && { rejectUnauthorized: false };
    const client = new Client({
      host: "127.0.0.1",
      port,
      user: "postgres",
      password: passwords.superuser,
      database,
      ssl,
    });
    await client.connect();
    return client;
  };
  const superuser = await connect("postgres");
  return {
    port: postgres.port,
    superuser,
    connect,
    async createDatabase(name, options = "createrole", password = "owner") {
      const owner = escapeIdentifier(name);
      if (name === "md5") await superuser.query("set password_encryption = md5");
      await superuser.query(`create role ${owner} login ${options} password ${escapeLiteral(password)}`);
      await superuser.query("reset password_encryption");
      await superuser.query(`create database ${owner} owner ${owner}`);
      return `postgres://${encodeURIComponent(name)}:${encodeURIComponent(password)}@127.0.0.1:${postgres.port}/${encodeURIComponent(name)}`;
    },
    async stop() {
      await superuser.end();
      await postgres.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}
