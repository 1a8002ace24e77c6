/** The limits and fixed values of all functions, with their units. */

/** Limits the body of a request. */
export const REQUEST_BODY_BYTES_MAX = 64 * 1024;
/** Limits the data of a CloudEvent. A broker accepts more from foreign producers than a request may contain. */
export const EVENT_BODY_BYTES_MAX = 1024 * 1024;
/** Limits a record of a topic. It is above the limit of an event, so that a larger event becomes a dead letter with a reason. */
export const RECORD_BYTES_MAX = 1_250_000;
/** Limits the complete requests in progress in one process. The process answers the next one with 503 at once. */
export const REQUESTS_IN_FLIGHT_MAX = 1000;
/** Limits the requests of one user among them. */
export const REQUESTS_OF_USER_MAX = 100;
/** Limits the requests without a token from one address among them. Many clients may share an address. */
export const REQUESTS_OF_ADDRESS_MAX = 500;
/** Limits the time in which a client receives an answer that is complete. Then its connection closes. */
export const ANSWER_SEND_MILLISECONDS_MAX = 30_000;
/** Limits the time from the first byte of a request to its answer. Then the answer is 503 `outcome-unknown`. */
export const REQUEST_MILLISECONDS_MAX = 20_000;
/** Remains of that time when a call stops waiting for its statement, so that the answer can state that the request had no effect. */
export const REQUEST_ANSWER_MILLISECONDS = 500;
/** Limits the requests of one process whose body is still arriving. One more closes the oldest of them. */
export const REQUESTS_INCOMPLETE_MAX = 1000;
/** Limits the open connections of one process. It is above REQUESTS_IN_FLIGHT_MAX and REQUESTS_INCOMPLETE_MAX together. */
export const CONNECTIONS_MAX = 4_000;
/**
 * Limits the new connections that wait while a process is busy. Node's default is 511, and a client repeats its SYN after 1, 3, 7
 * and 15 s when the queue is full. Linux lowers it to `net.core.somaxconn`, 4 096 by default.
 */
export const CONNECTIONS_WAITING_MAX = 4_000;
/** Limits a request line and its headers, as a client sends them. It is Node's default. */
export const REQUEST_HEADER_BYTES_MAX = 16 * 1024;
/** Limits the same in a function: a proxy adds headers, and writes a space after each colon. */
export const FORWARDED_HEADER_BYTES_MAX = 24 * 1024;
/** Limits the headers of an event. KafkaSource sends a record's key in two headers and each record header in one. */
export const EVENT_HEADER_BYTES_MAX = 2 * RECORD_BYTES_MAX + 1024 * 1024;
/** Limits the time from the first byte of a request to the last byte of its body. Then the answer is 408. */
export const REQUEST_RECEIVE_MILLISECONDS_MAX = 5_000;
/** States how often Node searches for requests that exceed REQUEST_RECEIVE_MILLISECONDS_MAX. */
export const REQUEST_RECEIVE_CHECK_MILLISECONDS = 500;
/** Keeps an idle connection open. It is above the 90 s of queue-proxy, so that the proxy closes it first. */
export const KEEP_ALIVE_MILLISECONDS = 95_000;

/** Limits the wait for requests in flight after SIGTERM. All DRAIN limits together are below Knative's `timeoutSeconds`. */
export const DRAIN_REQUESTS_MILLISECONDS_MAX = 20_000;
/** Waits after SIGTERM for a request that is on its way. Then the process closes connections that received no request. */
export const DRAIN_ARRIVAL_MILLISECONDS = 250;
/** Limits the publication of waiting events after SIGTERM. */
export const DRAIN_EVENTS_MILLISECONDS_MAX = 5_000;
/** Limits the closing of the database connections after SIGTERM. */
export const DRAIN_DATABASE_MILLISECONDS_MAX = 2_000;
/** Limits the last export of telemetry after SIGTERM. */
export const DRAIN_TELEMETRY_MILLISECONDS_MAX = 2_000;

/** Spans and measurements that wait for telemetry.cjs. */
export const TELEMETRY_RECORDS_WAITING_MAX = 2_048;
/** The last export after SIGTERM. A collector that does not answer would delay the end by 10 s. */
export const TELEMETRY_SHUTDOWN_MILLISECONDS_MAX = 1_900;
/** Time between two warnings about an exporter that fails. */
export const TELEMETRY_WARNING_MILLISECONDS_MIN = 60_000;

/** Limits the connections of one process, unless DATABASE_POOL is set. scripts/database/connections.ts adds up all pods. */
export const POOL_CONNECTIONS_MAX = 4;
/** Limits the wait of a statement for a connection of the pool. */
export const POOL_WAIT_MILLISECONDS_MAX = 5_000;
/** Limits how long a connection stays open without a statement. */
export const POOL_IDLE_MILLISECONDS_MAX = 30_000;
/** Limits one statement. Migrations set it for each role, as `statement_timeout`. */
export const STATEMENT_MILLISECONDS_MAX = 10_000;
/** Limits the wait of one statement for a locked row. Migrations set it for each role, as `lock_timeout`. */
export const ROW_WAIT_MILLISECONDS_MAX = 1_000;

/** Limits the calls in one statement of batch.ts. CPU per payment falls until about 64 rows; latency grows with each row. */
export const BATCH_ROWS_MAX = 64;
/** Limits the statements of batches in flight. The second goes out only beside a slow one. */
export const BATCH_STATEMENTS_MAX = 2;
/** Limits the statements of calls that run alone. With BATCH_STATEMENTS_MAX they use at most the pool. */
export const BATCH_LANE_STATEMENTS_MAX = 2;
/** Separates slow statements: one in flight for longer may wait for a locked row. */
export const BATCH_SLOW_MILLISECONDS = 50;
/** Limits how long a batch waits for the next requests of the clients that the last statement has answered. */
export const BATCH_FILL_MILLISECONDS = 1;
/** Ends that wait when this number of calls is ready. More calls in a batch hardly lower the cost of a call. */
export const BATCH_FILL_CALLS_MAX = 32;
/** Pauses before a call whose row stayed locked is sent again. */
export const BATCH_ROW_PAUSE_MILLISECONDS = 100;
/** Limits the calls of one process that wait or are in flight. */
export const BATCH_CALLS_MAX = 1_000;
/** Limits the calls of one key among them, so that one user cannot fill the queue. */
export const BATCH_KEY_CALLS_MAX = 100;
/** Limits the keys whose calls run alone. */
export const BATCH_LANE_KEYS_MAX = 250;
/** Refuses new calls at once while the first call of the queue has waited this long: they would wait longer, and time out. */
export const BATCH_QUEUE_MILLISECONDS_MAX = 5_000;
/** Limits the wait of one call for its statement, with the time of locked rows. */
export const BATCH_WAIT_MILLISECONDS_MAX = 10_000;
/** Limits the opening of one connection: TCP, TLS and login. */
export const DATABASE_CONNECT_MILLISECONDS_MAX = 5_000;
/** Limits how long a statement is repeated after its first failure: above a server's restart, below a client's patience. */
export const DATABASE_RETRY_MILLISECONDS_MAX = 3_000;
/** Is the first pause between two attempts. Each further pause is twice as long. */
export const DATABASE_RETRY_PAUSE_MILLISECONDS_MIN = 20;
/** Limits the pause between two attempts. */
export const DATABASE_RETRY_PAUSE_MILLISECONDS_MAX = 500;
/** Is the `Retry-After` of answers while the database cannot work. */
export const DATABASE_RETRY_AFTER_SECONDS = 1;
/** Limits the bytes of one connection that wait to be sent. The largest statement, a dead letter of 1 MiB, sends about 3 MiB. */
export const DATABASE_BUFFERED_BYTES_MAX = 16 * 1024 * 1024;
/** Limits how long a closing connection waits to send its last bytes. */
export const DATABASE_CLOSE_MILLISECONDS_MAX = 500;
/** Is the idle time after which TCP asks whether the server still answers. */
export const DATABASE_KEEP_ALIVE_MILLISECONDS = 10_000;
/** Is the idle time after which a connection must answer an empty query before it carries a statement. */
export const DATABASE_IDLE_TRUSTED_MILLISECONDS = 2_000;
/** Limits the wait for the answer to that empty query. Then another connection carries the statement. */
export const DATABASE_CHECK_MILLISECONDS_MAX = 1_000;
/** Limits the SCRAM iterations that a server may demand. Postgres uses 4 096; many more would occupy the processor. */
export const SCRAM_ITERATIONS_MAX = 1_000_000;
/** Limits how long a trigger waits for an unavailable database. Its source waits 30 s for an answer. */
export const DATABASE_AWAY_MILLISECONDS_MAX = 20_000;
/** Pauses between two attempts of a trigger while the database is unavailable. */
export const DATABASE_AWAY_STEP_MILLISECONDS = 1_000;

/** Limits the events that wait in memory to be published. The relay publishes the others from the outbox. */
export const PUBLISH_QUEUE_EVENTS_MAX = 1_000;
/** Limits the events of one batch for the broker. */
export const PUBLISH_BATCH_EVENTS_MAX = 100;
/** Pauses after a batch so that the next one grows: a request to Kafka costs as much CPU as many events in it. */
export const PUBLISH_PAUSE_MILLISECONDS = 20;
/** Limits one publication. */
export const PUBLISH_MILLISECONDS_MAX = 10_000;
/** Limits the batches that wait for the one in flight. The next is refused at once: the outbox keeps its events. */
export const PUBLISH_BATCHES_WAITING_MAX = 32;

/** Is the age at which the relay publishes an event of the outbox. */
export const RELAY_OVERDUE_SECONDS = 10;
/** Limits the events in one statement of the relay. */
export const RELAY_BATCH_EVENTS_MAX = 500;
/** Limits the claimed events whose release the relay repeats after a failure of the database. The others wait as after a publication. */
export const RELAY_UNRELEASED_EVENTS_MAX = 10_000;
/** Limits the bytes of one batch. A broker limits a batch for one partition, and accepts the largest event. */
export const RELAY_BATCH_BYTES_MAX = EVENT_BODY_BYTES_MAX;
/** Limits one run of the relay. */
export const RELAY_RUN_MILLISECONDS_MAX = 45_000;
/** Limits the characters of one attribute in a dead letter. */
export const DEAD_LETTER_ATTRIBUTE_LENGTH_MAX = 16 * 1024;
/** Limits the characters of all attributes in a dead letter. */
export const DEAD_LETTER_ATTRIBUTES_LENGTH_MAX = 64 * 1024;
/** Limits the bytes in a dead letter of a body above EVENT_BODY_BYTES_MAX. */
export const DEAD_LETTER_BODY_BYTES_MAX = 64 * 1024;
/** Limits the number of dead letters. The relay deletes the oldest beyond it. */
export const DEAD_LETTERS_MAX = 10_000;
/** Limits the size of all dead letters. The relay deletes the oldest beyond it. */
export const DEAD_LETTERS_BYTES_MAX = 1024 * 1024 * 1024;
/** Limits the age of a dead letter. The relay deletes older ones. */
export const DEAD_LETTER_HOURS_MAX = 90 * 24;
/** Limits the dead letters that one statement deletes. */
export const TRIM_BATCH_DEAD_LETTERS_MAX = 1_000;
/** Limits the age of notifications: the relay deletes older ones. Two years. */
export const NOTIFICATION_HOURS_MAX = 730 * 24;
/** Limits the notifications that one statement deletes. */
export const FORGET_BATCH_NOTIFICATIONS_MAX = 5_000;
/** Limits the characters of a dead letter's reason. */
export const REASON_LENGTH_MAX = 1_000;
/** Limits the publications of one event, about seventy minutes. Then the event moves to the dead letters. */
export const PUBLISH_ATTEMPTS_MAX = 12;
/** States how long an idempotency key keeps its answer. */
export const IDEMPOTENCY_KEY_DAYS = 7;
/** Limits the old keys that one statement deletes. */
export const FORGET_BATCH_KEYS_MAX = 5_000;
/** Limits the deletion of old keys in one run of the relay. */
export const FORGET_RUN_MILLISECONDS_MAX = 5_000;
/** Limits the characters of an idempotency key. */
export const IDEMPOTENCY_KEY_LENGTH_MAX = 255;
/** Matches an idempotency key: visible ASCII. */
export const IDEMPOTENCY_KEY_PATTERN = "^[!-~]+$";

/** Limits the wrong fields that one refusal names. */
export const FIELD_ERRORS_MAX = 20;
/** Limits the characters of the request that a refusal quotes. */
export const QUOTE_LENGTH_MAX = 100;

/** Limits the accounts that one statement of the hourly seal hashes. */
export const SEAL_ACCOUNTS_MAX = 10_000;
/** Limits one run of the hourly seal. */
export const SEAL_RUN_MILLISECONDS_MAX = 45_000;
/** Limits the wait of one run for transactions that may write an earlier entry. They take milliseconds unless one waits for a lock. */
export const SEAL_WAIT_MILLISECONDS_MAX = 1_000;
/** Pauses between two checks of these transactions. */
export const SEAL_WAIT_MILLISECONDS_STEP = 50;

/** Is the number of rows of a page when the request has no `limit`. */
export const PAGE_ROWS_DEFAULT = 50;
/** Limits the rows of a page. */
export const PAGE_ROWS_MAX = 100;
/** Limits the characters of a cursor. */
export const CURSOR_LENGTH_MAX = 200;

/** Is the `iss` of a token (RFC 7519 §4.1.1). */
export const TOKEN_ISSUER = "lotus";
/** Is the `aud` of a token (RFC 7519 §4.1.3). */
export const TOKEN_AUDIENCE = "lotus";
/** Is the lifetime of a token. */
export const TOKEN_SECONDS = 3600;
/** Limits the characters of a token. */
export const TOKEN_LENGTH_MAX = 4096;
/** Limits the checked tokens that one process remembers. */
export const TOKEN_CACHE_ENTRIES_MAX = 10_000;
/** Limits the difference between the clocks of two machines when a token was issued in the future. Its expiry is exact. */
export const TOKEN_CLOCK_SKEW_SECONDS = 5;
/** States how long a retired key may sign: until every pod has the new one. */
export const KEY_OVERLAP_SECONDS = 600;
/** States how often a process checks whether the key file has changed. */
export const KEY_CHECK_MILLISECONDS = 1_000;
/** States how often a process reads the key file without a change. */
export const KEY_READ_MILLISECONDS_MAX = 60_000;

/** Is the type of the event that a deployment sends to each topic. It shows that the topic accepts records, and triggers ignore it. */
export const PREFLIGHT_TYPE = "lotus.preflight.v1";
