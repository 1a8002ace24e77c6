/** Connections of commands to a database: the same URL rules as functions, and errors as sentences. */
import { Client, escapeIdentifier } from "pg";
import { type DatabaseAddress, explainTls, isNeon, readDatabaseAddress, tlsOptions } from "#kernel/database-url";

const CONNECT_MILLISECONDS_MAX = 15_000;

/** The address in a URL. DATABASE_CA_FILE names the certificate authority when the URL names none. */
export function addressOf(url: string): DatabaseAddress {
  return readDatabaseAddress(url, process.env.DATABASE_CA_FILE || undefined);
}

/** Returns the options of `pg` that a URL states. */
export function connectionOf(url: string) {
  const address = addressOf(url);
  const { host, port, user, password, database } = address;
  // `false` also keeps PGSSLMODE out.
  return { host, port, user, password, database, ssl: tlsOptions(address) ?? false };
}

/** An error of Postgres or Node while a connection opens. */
interface ConnectionError {
  readonly code?: string;
  readonly message: string;
  readonly errors?: readonly ConnectionError[];
}

/**
 * Describes the error of a connection attempt: the failure and the remedy.
 * The original error is its `cause`.
 */
export function explainConnection(error: unknown, address: DatabaseAddress): Error {
  const { code = "", message, errors } = error as ConnectionError;
  const { host, port, user, database } = address;
  const at = `${host}:${port}`;
  const reason = message || errors?.map((each) => each.message).join("; ") || code;
  const sentence = (text: string) => new Error(text, { cause: error });
  if (code === "ECONNREFUSED")
    return sentence(
      `No server listens at ${at} (connection refused). Is Postgres running there, and is the port right?`,
    );
  if (code === "ENOTFOUND" || code === "EAI_AGAIN")
    return sentence(`The host name ${host} cannot be resolved (${code}). Check the database URL and the DNS.`);
  if (code === "ETIMEDOUT" || code === "EHOSTUNREACH" || code === "ENETUNREACH" || /time(d )?out|in time/i.test(reason))
    return sentence(`The database at ${at} does not answer. Check the address, and firewalls between.`);
  if (code === "28P01")
    return sentence(`The password of the role ${user} at ${at} is wrong. In a URL, % @ / # ? : are percent-encoded.`);
  if (code === "28000") return sentence(`The server at ${at} refuses the role ${user}: ${reason}.`);
  if (code === "3D000")
    return sentence(
      `The server at ${at} has no database ${database}. Check the name in the URL, or create it: create database ${escapeIdentifier(database)}.`,
    );
  if (code === "42501")
    return sentence(
      `The role ${user} may not connect to the database ${database} (${reason}). Its owner runs: grant connect on database ${escapeIdentifier(database)} to ${escapeIdentifier(user)}.`,
    );
  if (code === "53300")
    return sentence(
      `The server at ${at} has no free connection (${reason}). Raise max_connections, or end other clients.`,
    );
  if (/does not support SSL/i.test(reason))
    return sentence(`The database at ${at} does not offer TLS, and sslmode=${address.tlsMode} demands it.`);
  return sentence(`The database at ${at} refused the connection: ${explainTls(error as Error, host).message}`);
}

/**
 * Connects as a client of commands does.
 * @throws {Error} a sentence
 */
export async function connectTo(url: string): Promise<Client> {
  const client = new Client({ ...connectionOf(url), connectionTimeoutMillis: CONNECT_MILLISECONDS_MAX });
  // A connection that is cut fails the next statement; without a listener it would end the process.
  client.on("error", () => undefined);
  try {
    await client.connect();
  } catch (error) {
    throw explainConnection(error, addressOf(url));
  }
  return client;
}

/** Neon's pooler shares its host's name with the database behind it. */
export function withoutNeonPooler(url: string): string {
  const direct = new URL(url);
  if (isNeon(direct.hostname)) direct.hostname = direct.hostname.replace(/-pooler(?=\.)/, "");
  return direct.href;
}
