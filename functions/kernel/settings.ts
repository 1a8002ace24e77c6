/** The settings of a function process, from its environment. */
import { readFileSync } from "node:fs";
import * as v from "valibot";
import { POOL_CONNECTIONS_MAX } from "./limits.ts";

const port = v.pipe(
  v.string(),
  v.regex(/^\d{1,5}$/, "a port number, 0 to 65535"),
  v.transform(Number),
  v.maxValue(65535, "a port number, 0 to 65535"),
);
const url = (...protocols: string[]) =>
  v.pipe(
    v.string(),
    v.check(
      (text) => URL.canParse(text) && protocols.includes(new URL(text).protocol),
      `a URL that begins with ${protocols.map((protocol) => `${protocol}//`).join(" or ")}`,
    ),
  );
/** Kafka's brokers, as a variable or a flag names them. */
export const Brokers = v.pipe(
  v.string(),
  v.transform((text) => text.split(",").map((entry) => entry.trim())),
  v.array(v.pipe(v.string(), v.regex(/^[^\s:]+:\d{1,5}$/, "host:port, several separated by commas"))),
);

/** The beginning of every topic and consumer group, so that several installations can share one Kafka. */
export const KafkaPrefix = v.pipe(
  v.string(),
  v.regex(/^[a-zA-Z0-9._-]{0,100}$/, "up to 100 letters, digits, dots, underscores and hyphens"),
);

/** Origins as browsers write them, as a variable or a flag names them. */
export const Origins = v.pipe(
  v.string(),
  v.transform((text) => text.split(",").map((entry) => entry.trim())),
  v.array(
    v.pipe(
      v.string(),
      v.check(
        (text) => /^https?:/.test(text) && URL.canParse(text) && new URL(text).origin === text,
        "an origin such as https://shop.example, several separated by commas",
      ),
    ),
  ),
);

const otlpEndpoint = () => v.optional(url("http:", "https:"));
const exporter = () => v.optional(v.picklist(["otlp", "none"], "otlp or none"), "otlp");
const SAMPLERS = [
  "always_on",
  "always_off",
  "traceidratio",
  "parentbased_always_on",
  "parentbased_always_off",
  "parentbased_traceidratio",
];

const Variables = v.object({
  /** Knative's: the port to listen on. */
  PORT: v.optional(port, "8080"),
  /** The address to listen on; all interfaces when it is not set, as a container needs. */
  HOST: v.optional(v.string()),
  /** The origins whose pages may call the endpoints. */
  CORS_ORIGINS: v.optional(Origins),
  /** A file with the secret of a local run: the function accepts only requests that show it. */
  RUN_SECRET_FILE: v.optional(v.string()),
  /** How many proxies in front of the function append an address to X-Forwarded-For. 0: the header counts for nothing. */
  TRUSTED_PROXIES: v.optional(
    v.pipe(v.string(), v.regex(/^\d$/, "a number of proxies, 0 to 9"), v.transform(Number)),
    "0",
  ),
  /** Users that one address may register in an hour. The attempts count, not only the successes. */
  REGISTRATIONS_PER_ADDRESS_MAX: v.optional(
    v.pipe(v.string(), v.regex(/^[1-9]\d{0,8}$/, "a number of users, 1 to 999999999"), v.transform(Number)),
    "100",
  ),
  /** Where the database is: postgres://role:password@host:port/name. */
  DATABASE_URL: v.optional(url("postgres:", "postgresql:")),
  /** A file that contains the password, when DATABASE_URL has none: a mounted secret. */
  DATABASE_PASSWORD_FILE: v.optional(v.string()),
  /** A PEM file: the authority that signed the database's certificate, when the URL names no sslrootcert. */
  DATABASE_CA_FILE: v.optional(v.string()),
  /** "websocket": reach the database as Neon is reached, at ws(s)://host:port/v2. Neon needs no setting. */
  DATABASE_TRANSPORT: v.optional(v.picklist(["tcp", "websocket"], "tcp or websocket")),
  /** Connections of this process at most. */
  DATABASE_POOL: v.optional(
    v.pipe(v.string(), v.regex(/^[1-9]\d?$/, "a number of connections, 1 to 99"), v.transform(Number)),
    String(POOL_CONNECTIONS_MAX),
  ),
  /** "false": no prepared statements, for a transaction pooler that does not keep them. */
  DATABASE_PREPARE: v.optional(
    v.pipe(
      v.picklist(["true", "false"], "true or false"),
      v.transform((text) => text === "true"),
    ),
    "true",
  ),
  /** Kafka's brokers. Without them events go to K_SINK. */
  KAFKA_BROKERS: v.optional(Brokers),
  /** The beginning of every topic and consumer group. */
  KAFKA_PREFIX: v.optional(KafkaPrefix, ""),
  /** "true": Kafka over TLS. The files are PEM: a private certificate authority, and the certificate of the client with its key. */
  KAFKA_TLS: v.optional(
    v.pipe(
      v.picklist(["true", "false"], "true or false"),
      v.transform((text) => text === "true"),
    ),
  ),
  KAFKA_TLS_CA_FILE: v.optional(v.string()),
  KAFKA_TLS_CERTIFICATE_FILE: v.optional(v.string()),
  KAFKA_TLS_KEY_FILE: v.optional(v.string()),
  /** SASL: the user that Lotus authenticates to Kafka as. The password is a value, or a file: a mounted secret. */
  KAFKA_SASL_MECHANISM: v.optional(
    v.picklist(["plain", "scram-sha-256", "scram-sha-512"], "plain, scram-sha-256 or scram-sha-512"),
    "scram-sha-512",
  ),
  KAFKA_USERNAME: v.optional(v.string()),
  KAFKA_USERNAME_FILE: v.optional(v.string()),
  KAFKA_PASSWORD: v.optional(v.string()),
  KAFKA_PASSWORD_FILE: v.optional(v.string()),
  /** Knative's: where CloudEvents are sent over HTTP. */
  K_SINK: v.optional(url("http:", "https:")),
  /** The public keys (RFC 7517 JWK Set), and, for profile-login only, the private key (JWK). */
  JWKS_FILE: v.optional(v.string()),
  SIGNING_KEY_FILE: v.optional(v.string()),
  /** OpenTelemetry's: where spans and metrics are sent as OTLP over HTTP. Without an endpoint telemetry is off. */
  OTEL_EXPORTER_OTLP_ENDPOINT: otlpEndpoint(),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: otlpEndpoint(),
  OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: otlpEndpoint(),
  OTEL_EXPORTER_OTLP_PROTOCOL: v.optional(v.picklist(["http/json"], "http/json, the protocol that Lotus sends")),
  OTEL_TRACES_EXPORTER: exporter(),
  OTEL_METRICS_EXPORTER: exporter(),
  OTEL_SDK_DISABLED: v.optional(
    v.pipe(
      v.string(),
      v.transform((text) => text.toLowerCase() === "true"),
    ),
    "false",
  ),
  OTEL_TRACES_SAMPLER: v.optional(v.picklist(SAMPLERS, SAMPLERS.join(", ")), "parentbased_always_on"),
  OTEL_TRACES_SAMPLER_ARG: v.optional(
    v.pipe(
      v.string(),
      v.transform(Number),
      v.number("a ratio, 0 to 1"),
      v.minValue(0, "a ratio, 0 to 1"),
      v.maxValue(1, "a ratio, 0 to 1"),
    ),
    "1",
  ),
});

const Environment = v.pipe(
  Variables,
  v.forward(
    v.partialCheck(
      [["KAFKA_USERNAME"], ["KAFKA_USERNAME_FILE"], ["KAFKA_PASSWORD"], ["KAFKA_PASSWORD_FILE"]],
      ({
        KAFKA_USERNAME: username,
        KAFKA_USERNAME_FILE: userFile,
        KAFKA_PASSWORD: password,
        KAFKA_PASSWORD_FILE: file,
      }) => (username === undefined && userFile === undefined) || password !== undefined || file !== undefined,
      "set, or KAFKA_PASSWORD_FILE, because KAFKA_USERNAME or KAFKA_USERNAME_FILE is",
    ),
    ["KAFKA_PASSWORD"],
  ),
);

/** Describes the settings after they were read and checked. */
export type Settings = v.InferOutput<typeof Environment>;

/** Reports a wrong environment. `message` contains a sentence for each variable. */
export class SettingsError extends Error {}

/**
 * Reads the settings from an environment.
 * @throws {SettingsError} when a variable has a value that cannot be used
 */
export function readSettings(environment: Record<string, string | undefined>): Settings {
  const given = Object.fromEntries(Object.entries(environment).filter(([, value]) => value !== ""));
  const result = v.safeParse(Environment, given);
  if (result.success) return result.output;
  throw new SettingsError(
    result.issues
      .map((issue) => {
        const name = String(issue.path?.[0]?.key);
        const value = /URL|ENDPOINT/.test(name) ? "its value" : JSON.stringify(given[name]);
        const isNot = given[name] === undefined ? "" : `; ${value} is not`;
        return `The environment variable ${name} must be ${issue.message}${isNot}.`;
      })
      .join("\n"),
  );
}

let known: Settings | undefined;

/**
 * Returns the settings of this process. The first call reads them.
 * @throws {SettingsError} when a variable has a wrong value
 */
export function settings(): Settings {
  known ??= readSettings(process.env);
  return known;
}

/**
 * Returns a setting that this function needs.
 * @throws {SettingsError} when it is not set
 */
export function required<Name extends keyof Settings>(name: Name): NonNullable<Settings[Name]> {
  const value = settings()[name];
  if (value === undefined)
    throw new SettingsError(`The environment variable ${name} is not set, and this function needs it.`);
  return value;
}

/**
 * Returns the text of a file that a setting names.
 * @throws {SettingsError} when it cannot be read
 */
export function readSettingFile(name: Extract<keyof Settings, `${string}_FILE`>): string {
  const path = required(name);
  try {
    return readFileSync(path, "utf8").trim();
  } catch (error) {
    throw new SettingsError(`The file that ${name} names, ${path}, cannot be read: ${(error as Error).message}.`);
  }
}
