/** What a function process is told by its environment, and the limits that it keeps. */
import { readFileSync } from "node:fs";
import * as v from "valibot";

/** A request's body; a CloudEvent's data may be larger, because a broker lets foreign producers send that much. */
export const REQUEST_BODY_BYTES_MAX = 64 * 1024;
export const EVENT_BODY_BYTES_MAX = 1024 * 1024;
/** The largest record of a topic: more than an event may have, so that a larger event becomes a dead letter with a reason. */
export const RECORD_BYTES_MAX = 1_250_000;
/** Complete requests in progress in one process; one more is answered 503 at once. */
export const REQUESTS_IN_FLIGHT_MAX = 1000;
/** Of these, requests of one user, and requests without a token from one address, which many clients may share. */
export const REQUESTS_OF_USER_MAX = 100;
export const REQUESTS_OF_ADDRESS_MAX = 500;
/** From the first byte of a request to its answer; then 503 `outcome-unknown`. */
export const REQUEST_MILLISECONDS_MAX = 20_000;
/** What is left of it when a call stops waiting for its statement, so that the answer says that nothing was changed. */
export const REQUEST_ANSWER_MILLISECONDS = 500;
/** Requests of one process whose body is still arriving; one more closes the one that waits longest. */
export const REQUESTS_INCOMPLETE_MAX = 1000;
/** Open connections of one process, idle ones included: above REQUESTS_IN_FLIGHT_MAX and REQUESTS_INCOMPLETE_MAX together. */
export const CONNECTIONS_MAX = 4_000;
/** A request line and its headers, as a client may send them: Node's default. */
export const REQUEST_HEADER_BYTES_MAX = 16 * 1024;
/** The same as a function accepts it: a proxy adds headers, and writes a space after each colon. */
export const FORWARDED_HEADER_BYTES_MAX = 24 * 1024;
/** KafkaSource sends a record's key in two headers and each record header in one: twice the record, and room for names. */
export const EVENT_HEADER_BYTES_MAX = 2 * RECORD_BYTES_MAX + 1024 * 1024;
/** From the first byte of a request to the last byte of its body; then 408. */
export const REQUEST_RECEIVE_MILLISECONDS_MAX = 5_000;
/** How often Node looks for requests that take longer than that. */
export const REQUEST_RECEIVE_CHECK_MILLISECONDS = 500;
/** Above queue-proxy's 90 s, so that the proxy, never the function, gives up an idle connection. */
export const KEEP_ALIVE_MILLISECONDS = 95_000;

/** Draining after SIGTERM: requests in flight, then events, then connections. Together below Knative's `timeoutSeconds`. */
export const DRAIN_REQUESTS_MILLISECONDS_MAX = 20_000;
/** For a request that was on its way when SIGTERM came; then connections on which nothing was asked are closed. */
export const DRAIN_ARRIVAL_MILLISECONDS = 250;
export const DRAIN_EVENTS_MILLISECONDS_MAX = 5_000;
export const DRAIN_DATABASE_MILLISECONDS_MAX = 2_000;
export const DRAIN_TELEMETRY_MILLISECONDS_MAX = 2_000;

/** Spans and measurements that wait for telemetry.cjs. */
export const TELEMETRY_RECORDS_WAITING_MAX = 2_048;
/** The last export after SIGTERM. A collector that does not answer would delay the end by 10 s. */
export const TELEMETRY_SHUTDOWN_MILLISECONDS_MAX = 1_900;
/** Time between two warnings about an exporter that fails. */
export const TELEMETRY_WARNING_MILLISECONDS_MIN = 60_000;

/** Connections of one process, unless DATABASE_POOL says otherwise. scripts/database/connections.ts adds up all pods. */
export const POOL_CONNECTIONS_MAX = 4;
export const POOL_WAIT_MILLISECONDS_MAX = 5_000;
export const POOL_IDLE_MILLISECONDS_MAX = 30_000;
export const STATEMENT_MILLISECONDS_MAX = 10_000;
/** Wait of one statement for a locked row. Migrations set it for each role, as `lock_timeout`. */
export const ROW_WAIT_MILLISECONDS_MAX = 1_000;

/** Group commit (batch.ts). Calls in one statement: CPU per payment falls until about 64 rows, latency grows with each row. */
export const BATCH_ROWS_MAX = 64;
/** Statements of batches in flight, the second only beside a slow one, and of calls that run alone. Together at most the pool. */
export const BATCH_STATEMENTS_MAX = 2;
export const BATCH_LANE_STATEMENTS_MAX = 2;
/** A statement in flight for longer than this is slow: it may wait for a locked row. */
export const BATCH_SLOW_MILLISECONDS = 50;
/** Pause before a call is sent again whose row stayed locked. */
export const BATCH_ROW_PAUSE_MILLISECONDS = 100;
/** Calls of one process that wait or are in flight, and those of one key, so that one user cannot fill the queue. */
export const BATCH_CALLS_MAX = 1_000;
export const BATCH_KEY_CALLS_MAX = 100;
/** Keys whose calls run alone. */
export const BATCH_LANE_KEYS_MAX = 250;
/** Wait of one call for its statement, locked rows included. */
export const BATCH_WAIT_MILLISECONDS_MAX = 10_000;
/** Opening one connection: TCP, TLS, login. */
export const DATABASE_CONNECT_MILLISECONDS_MAX = 5_000;
/** How long a statement is repeated after its first failure: above a server's restart, below a client's patience. */
export const DATABASE_RETRY_MILLISECONDS_MAX = 3_000;
export const DATABASE_RETRY_PAUSE_MILLISECONDS_MIN = 20;
export const DATABASE_RETRY_PAUSE_MILLISECONDS_MAX = 500;
/** What `Retry-After` says while the database cannot work. */
export const DATABASE_RETRY_AFTER_SECONDS = 1;
/** Bytes of one connection that Postgres has not read yet. Above what one statement sends. */
export const DATABASE_BUFFERED_BYTES_MAX = 64 * 1024 * 1024;
/** How long a closing connection waits to send its last bytes. */
export const DATABASE_CLOSE_MILLISECONDS_MAX = 500;
/** Idle time after which TCP asks whether the server is still there. */
export const DATABASE_KEEP_ALIVE_MILLISECONDS = 10_000;
/** Postgres uses 4 096 by default. More than this would let a server occupy the processor. */
export const SCRAM_ITERATIONS_MAX = 1_000_000;
/** How long a trigger waits for a database that is away before it fails: below the 30 s that its source waits for an answer. */
export const DATABASE_AWAY_MILLISECONDS_MAX = 20_000;
export const DATABASE_AWAY_STEP_MILLISECONDS = 1_000;

/** Events that wait in memory to be published. What does not fit stays in the outbox for the relay. */
export const PUBLISH_QUEUE_EVENTS_MAX = 1_000;
export const PUBLISH_BATCH_EVENTS_MAX = 100;
export const PUBLISH_MILLISECONDS_MAX = 10_000;
/** Batches that wait for the one in flight. One more is refused at once: the outbox keeps its events. */
export const PUBLISH_BATCHES_WAITING_MAX = 32;

/** The relay: what counts as overdue, how much in one statement and one batch for the broker, how long in one run. */
export const RELAY_OVERDUE_SECONDS = 10;
export const RELAY_BATCH_EVENTS_MAX = 500;
/** A broker's limit is on what one batch holds for one partition: as much as the largest event, no more. */
export const RELAY_BATCH_BYTES_MAX = EVENT_BODY_BYTES_MAX;
export const RELAY_RUN_MILLISECONDS_MAX = 45_000;
/** What a dead letter contains: characters of one attribute and of all together, and bytes of a body above EVENT_BODY_BYTES_MAX. */
export const DEAD_LETTER_ATTRIBUTE_LENGTH_MAX = 16 * 1024;
export const DEAD_LETTER_ATTRIBUTES_LENGTH_MAX = 64 * 1024;
export const DEAD_LETTER_BODY_BYTES_MAX = 64 * 1024;
/** The relay deletes the oldest dead letters beyond this number, this size together, and this age. */
export const DEAD_LETTERS_MAX = 10_000;
export const DEAD_LETTERS_BYTES_MAX = 1024 * 1024 * 1024;
export const DEAD_LETTER_HOURS_MAX = 90 * 24;
/** Characters of a dead letter's reason. */
export const REASON_LENGTH_MAX = 1_000;
/** Publications of one event before it moves to the dead letters: about seventy minutes. */
export const PUBLISH_ATTEMPTS_MAX = 12;
export const IDEMPOTENCY_KEY_DAYS = 7;
/** Old keys that one statement deletes, and how long in one run of the relay. */
export const FORGET_BATCH_KEYS_MAX = 5_000;
export const FORGET_RUN_MILLISECONDS_MAX = 5_000;
export const IDEMPOTENCY_KEY_LENGTH_MAX = 255;
/** Visible ASCII. */
export const IDEMPOTENCY_KEY_PATTERN = "^[!-~]+$";

/** Wrong fields that one refusal names. */
export const FIELD_ERRORS_MAX = 20;
/** Of a text from the request that a refusal quotes. */
export const QUOTE_LENGTH_MAX = 100;

/** The hourly seal: accounts in one statement, one run, and the pause while a transaction runs that may write an earlier entry. */
export const SEAL_ACCOUNTS_MAX = 10_000;
export const SEAL_RUN_MILLISECONDS_MAX = 45_000;
export const SEAL_WAIT_MILLISECONDS_STEP = 100;

export const PAGE_ROWS_DEFAULT = 50;
export const PAGE_ROWS_MAX = 100;
export const CURSOR_LENGTH_MAX = 200;

export const TOKEN_ISSUER = "lotus";
export const TOKEN_AUDIENCE = "lotus";
export const TOKEN_SECONDS = 3600;
export const TOKEN_LENGTH_MAX = 4096;
export const TOKEN_CACHE_ENTRIES_MAX = 10_000;
/** How far the clocks of two machines may differ: a token issued "in the future" is accepted within it. Its end is exact. */
export const TOKEN_CLOCK_SKEW_SECONDS = 5;
/** How long a retired key may sign: until every pod has the new one. */
export const KEY_OVERLAP_SECONDS = 600;
/** How often a process looks whether the key file has changed, and how often it reads the file in any case. */
export const KEY_CHECK_MILLISECONDS = 1_000;
export const KEY_READ_MILLISECONDS_MAX = 60_000;

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
  /** A file that holds the password, when it is not in DATABASE_URL: a mounted secret. */
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
  /** "true": Kafka over TLS. The files are PEM: an authority of one's own, and what proves a client to the broker. */
  KAFKA_TLS: v.optional(
    v.pipe(
      v.picklist(["true", "false"], "true or false"),
      v.transform((text) => text === "true"),
    ),
  ),
  KAFKA_TLS_CA_FILE: v.optional(v.string()),
  KAFKA_TLS_CERTIFICATE_FILE: v.optional(v.string()),
  KAFKA_TLS_KEY_FILE: v.optional(v.string()),
  /** SASL: who we are to Kafka. The password by itself, or in a file: a mounted secret. */
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

export type Settings = v.InferOutput<typeof Environment>;

/** The environment is wrong. `message` holds a sentence for each variable. */
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

/** The settings of this process, read once, at the first call. Throws SettingsError. */
export function settings(): Settings {
  known ??= readSettings(process.env);
  return known;
}

/**
 * One setting that this function cannot do without.
 * @throws {SettingsError} when it is not set
 */
export function required<Name extends keyof Settings>(name: Name): NonNullable<Settings[Name]> {
  const value = settings()[name];
  if (value === undefined)
    throw new SettingsError(`The environment variable ${name} is not set, and this function needs it.`);
  return value;
}

/**
 * The text of a file that a setting names.
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
