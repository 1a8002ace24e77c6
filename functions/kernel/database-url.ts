/** Reads a Postgres URL as libpq reads it: percent-encoded parts, `sslmode`, `sslrootcert`. */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import type { ConnectionOptions } from "node:tls";

/** The modes of libpq that decide before a byte is sent; `allow` and `prefer` would send a password in clear when TLS fails. */
export const TLS_MODES = ["disable", "require", "verify-ca", "verify-full"] as const;
/** Is one of TLS_MODES. */
export type TlsMode = (typeof TLS_MODES)[number];

/** Where a database is, and how a client connects to it. */
export interface DatabaseAddress {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  /** Undefined: the URL contains no password. */
  readonly password: string | undefined;
  readonly database: string;
  readonly applicationName: string | undefined;
  readonly tlsMode: TlsMode;
  /** The PEM text of the certificate authority. Undefined: the authorities that Node trusts. */
  readonly authority: string | undefined;
}

/** The URL cannot be used. `message` is a sentence without the URL's password. */
export class DatabaseUrlError extends Error {}

const PORT_DEFAULT = 5432;
const PARAMETERS = ["sslmode", "sslrootcert", "application_name", "channel_binding"];

/** Whether a host is a Neon endpoint, which accepts WebSockets. */
export function isNeon(host: string): boolean {
  return host.endsWith(".neon.tech");
}

/** Whether the path to a host stays inside this machine or this cluster. */
function isNear(host: string): boolean {
  return (
    host === "localhost" ||
    host === "::1" ||
    (isIP(host) === 4 && host.startsWith("127.")) ||
    /\.svc(\.cluster\.local)?$/.test(host)
  );
}

/** Reads the certificate authority's file. `system` means the authorities that Node trusts, as in libpq. */
function readAuthority(file: string | undefined): string | undefined {
  if (file === undefined || file === "system") return undefined;
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new DatabaseUrlError(
      `The file of the database's certificate authority cannot be read: ${(error as Error).message}.`,
    );
  }
  if (text.includes("-----BEGIN CERTIFICATE-----")) return text;
  throw new DatabaseUrlError(`The file of the database's certificate authority, ${file}, contains no PEM certificate.`);
}

function decode(part: string, name: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new DatabaseUrlError(`The ${name} in the database URL is not percent-encoded: write % as %25.`);
  }
}

function modeOf(url: URL, host: string, authorityFile: string | undefined): TlsMode {
  const given = url.searchParams.get("sslmode");
  if (given === null) return isNear(host) ? "disable" : "verify-full";
  const mode = TLS_MODES.find((known) => known === given);
  if (mode === undefined)
    throw new DatabaseUrlError(`sslmode in the database URL must be ${TLS_MODES.join(", ")}; ${given} is not.`);
  // Neon's own URLs say "require", and its certificates are of a public authority.
  if (mode === "require" && isNeon(host)) return "verify-full";
  // libpq: "require" with a root certificate verifies it.
  return mode === "require" && authorityFile !== undefined ? "verify-ca" : mode;
}

/**
 * Reads a URL such as postgres://role:password@host:port/name?sslmode=verify-full&sslrootcert=FILE.
 * A host that is neither loopback nor in the cluster (`*.svc`, `*.svc.cluster.local`) is reached with `verify-full` by default.
 * @param authorityFile the certificate authority's file when the URL names no `sslrootcert`
 * @throws {DatabaseUrlError} a sentence, when the URL cannot be used
 */
export function readDatabaseAddress(text: string, authorityFile?: string): DatabaseAddress {
  if (!URL.canParse(text) || !/^postgres(ql)?:$/.test(new URL(text).protocol))
    throw new DatabaseUrlError(
      "The database URL must look like postgres://role:password@host:port/name; % @ / # ? : in a password are percent-encoded.",
    );
  const url = new URL(text);
  const host = decode(url.hostname, "host").replace(/^\[|\]$/g, "");
  if (host === "") throw new DatabaseUrlError("The database URL names no host.");
  const unknown = [...url.searchParams.keys()].find((name) => !PARAMETERS.includes(name));
  if (unknown !== undefined)
    throw new DatabaseUrlError(`The database URL has the parameter ${unknown}. Lotus knows ${PARAMETERS.join(", ")}.`);
  if (url.searchParams.get("channel_binding") === "require" && !isNeon(host))
    throw new DatabaseUrlError("channel_binding=require is not supported: remove it, and use sslmode=verify-full.");
  const file = url.searchParams.get("sslrootcert") ?? authorityFile;
  const user = decode(url.username, "user");
  // libpq: the name of the user, when the URL names no database.
  const database = decode(url.pathname.slice(1), "name of the database") || user;
  if (database === "")
    throw new DatabaseUrlError("The database URL names no database: postgres://role:password@host:port/name.");
  const tlsMode = modeOf(url, host, file);
  return {
    host,
    port: Number(url.port || PORT_DEFAULT),
    user,
    password: url.password === "" ? undefined : decode(url.password, "password"),
    database,
    applicationName: url.searchParams.get("application_name") ?? undefined,
    tlsMode,
    authority: tlsMode === "disable" ? undefined : readAuthority(file),
  };
}

/** Returns the options of `tls.connect` for an address, or undefined when it asks for no TLS. */
export function tlsOptions({ host, tlsMode, authority }: DatabaseAddress): ConnectionOptions | undefined {
  if (tlsMode === "disable") return undefined;
  return {
    host,
    // RFC 6066 §3: SNI carries no IP address.
    ...(isIP(host) === 0 && { servername: host }),
    ...(authority !== undefined && { ca: authority }),
    rejectUnauthorized: tlsMode !== "require",
    ...(tlsMode === "verify-ca" && { checkServerIdentity: () => undefined }),
  };
}

/** Returns a sentence for a certificate that TLS refuses. Other errors stay as they are. */
export function explainTls(error: NodeJS.ErrnoException, host: string): Error {
  const { code = "" } = error;
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID")
    return Object.assign(new Error(`The certificate of the database does not name the host ${host}.`), { code });
  if (/CERT|ISSUER|LEAF_SIGNATURE/.test(code))
    return Object.assign(
      new Error(
        `The certificate of the database at ${host} is refused (${error.message}). Name its authority: sslrootcert=FILE in the URL, or DATABASE_CA_FILE.`,
      ),
      { code },
    );
  return error;
}
