/** lotus start: runs everything on this machine until Ctrl-C. */
import { relative } from "node:path";
import { command } from "../cli/command.ts";
import { EXIT_CODES, Refusal, sentenceOf, UsageError } from "../cli/errors.ts";
import { brokers, cors, database, folder, readCount, readFolder, readOrigins } from "../cli/options.ts";
import { print, step } from "../cli/output.ts";
import { table } from "../cli/text.ts";
import { readDatabaseUrl, readPoolerUrl } from "../database/connect.ts";
import { staleFiles } from "../generate/write.ts";
import { pretty } from "../local/log-lines.ts";
import { type Lotus, type LotusOptions, startLotus } from "../local/lotus.ts";
import { onStopSignal, watchNpm } from "../process/signals.ts";

const PORT_MAX = 65_535;
/** The port where debuggers look for Node. */
const INSPECT_PORT = 9229;

/** The options of `lotus start` and `lotus dev`. */
export const START_OPTIONS = {
  port: { type: "string", value: "NUMBER", about: "the port of the gateway; 0 is any free port", default: "8080" },
  host: {
    type: "string",
    value: "ADDRESS",
    about: "the address of the gateway; 0.0.0.0 listens on every network",
    default: "127.0.0.1",
  },
  cors,
  folder,
  fresh: { type: "boolean", about: "erase the data of earlier runs; but not of --database or --brokers" },
  database: { ...database, about: `${database.about}, instead of the one that Lotus starts` },
  pooler: {
    type: "string",
    value: "URL",
    about: "functions reach the database through this pooler, such as postgres://localhost:6432; migrations do not",
  },
  kafka: { type: "boolean", about: "start a real Kafka: in docker, else with Java 17 and Maven" },
  brokers: { ...brokers, about: "use these Kafka brokers, host:port,… (default KAFKA_BROKERS)" },
  inspect: {
    type: "string",
    value: "FUNCTION",
    implied: "all",
    about: "open the debugger of one function at port 9229, or of each at a free port",
  },
  otel: {
    type: "string",
    value: "URL",
    implied: "local",
    about: "export traces and metrics to this OTLP/HTTP endpoint; without a URL this run keeps the last 1000 traces",
  },
  json: { type: "boolean", about: "print the functions' log lines as JSON" },
  quiet: { type: "boolean", about: "print no log lines" },
} as const;

/** The values of START_OPTIONS. */
export interface StartValues {
  readonly port: string;
  readonly host: string;
  readonly cors: string | undefined;
  readonly pooler: string | undefined;
  readonly folder: string | undefined;
  readonly fresh: boolean;
  readonly database: string | undefined;
  readonly kafka: boolean;
  readonly brokers: string | undefined;
  readonly inspect: string | undefined;
  readonly otel: string | undefined;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** The last lines of the start: the next steps. */
const NEXT = (url: string) => `
  The page:      ${url}
  The scenario:  npm run scenario, in a second terminal
  The docs:      ${url}/docs for the API, docs/tour.md for the first ten minutes
`;

function inspectOptions(wanted: string | undefined): NonNullable<LotusOptions["nodeOptionsOf"]> {
  return (name) => {
    if (wanted === undefined || (wanted !== "all" && wanted !== name)) return [];
    return [`--inspect=127.0.0.1:${wanted === "all" ? 0 : INSPECT_PORT}`];
  };
}

/** Reads the value of --otel. */
function readOtel(text: string): string | true {
  if (text === "local") return true;
  if (URL.canParse(text) && /^https?:$/.test(new URL(text).protocol)) return text;
  throw new UsageError("--otel must be the URL of an OTLP/HTTP endpoint, such as http://localhost:4318.");
}

function readOptions(
  values: StartValues,
): Pick<LotusOptions, "port" | "host" | "cors" | "folder" | "fresh" | "kafka" | "databaseUrl" | "pooler" | "otel"> {
  const port = readCount("port", values.port, 0, PORT_MAX);
  if (values.database !== undefined) readDatabaseUrl("--database", values.database);
  if (values.pooler !== undefined) {
    readPoolerUrl("--pooler", values.pooler);
    if (values.database === undefined)
      throw new UsageError("--pooler needs --database: the same database without the pooler.");
  }
  if (values.kafka && values.brokers !== undefined)
    throw new UsageError("--kafka starts brokers and --brokers names others. Give one of them.");
  // An empty variable names no brokers.
  if (values.brokers !== undefined) process.env.KAFKA_BROKERS = values.brokers;
  return {
    port,
    folder: readFolder(values.folder),
    fresh: values.fresh,
    kafka: values.kafka || Boolean(process.env.KAFKA_BROKERS),
    host: values.host,
    ...(values.otel !== undefined && { otel: readOtel(values.otel) }),
    ...(values.cors !== undefined && { cors: readOrigins(values.cors) }),
    ...(values.database !== undefined && { databaseUrl: values.database }),
    ...(values.pooler !== undefined && { pooler: values.pooler }),
  };
}

function printServed({ url, kafka, served }: Lotus, milliseconds: number): void {
  print(`\nLotus is at ${url} (${(milliseconds / 1000).toFixed(1)} s). Ctrl-C stops it.\n`);
  if (kafka !== undefined) print(`  Kafka is at ${kafka.bootstrap.join(",")}.\n`);
  print(table([["call", "", "file"], ...[...served.values()].map(({ call, caller, file }) => [call, caller, file])]));
  print(NEXT(url));
}

/**
 * Runs Lotus until a signal, the end of npm, or `lotus stop`.
 * @param extra the additions of `lotus dev`
 */
export async function runLotus(values: StartValues, extra: Partial<LotusOptions>): Promise<void> {
  const options = readOptions(values);
  const began = performance.now();
  let stopping = false;
  let resolveStop: () => void = () => undefined;
  const stopped = new Promise<void>((resolve) => {
    resolveStop = resolve;
  });
  const stop = (why: string) => {
    if (stopping) return;
    stopping = true;
    print(`\n${why}: requests in progress finish. Ctrl-C once more ends Lotus at once.`);
    resolveStop();
  };
  // The guard ends Postgres, Kafka and the functions when this process ends.
  onStopSignal(stop, () => process.exit(EXIT_CODES.interrupted));
  await watchNpm(() => stop("npm has ended"));
  // Lotus ends with the reader of its output, such as `| head`. A message about it would fail as well.
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", () => stop("The output is closed"));
  }
  print("Lotus is starting.");
  let lotus: Lotus;
  try {
    lotus = await startLotus({
      ...options,
      ...extra,
      console: true,
      nodeOptionsOf: inspectOptions(values.inspect),
      onStopRequested: () => stop("lotus stop"),
      onLine: (name, line) => {
        if (!values.quiet) print(values.json ? line : pretty(name, line));
      },
      onNews: (name, news) => print(pretty(name, news)),
      // After a signal no further step begins, and the finished steps are undone.
      step: async (what, work) => {
        if (stopping) throw new Refusal("Lotus was stopped.");
        return step(what, work);
      },
    });
  } catch (error) {
    // Ctrl-C reaches the programs of a step as well, and they fail.
    if (!stopping) throw new Refusal(`Lotus did not start. ${sentenceOf(error)}`, { cause: error });
    print("Lotus has stopped during its start.");
    process.exit(EXIT_CODES.done);
  }
  if (!stopping) {
    printServed(lotus, performance.now() - began);
    // Rows that an earlier run left in the outbox are published now, not after a minute.
    await lotus.tick();
  }
  await stopped;
  try {
    await lotus.stop();
    print(`Lotus has stopped. The next start continues with the data in ${relative(process.cwd(), options.folder)}/.`);
  } catch (error) {
    throw new Refusal(`Lotus did not stop cleanly: ${sentenceOf(error)}`, { cause: error });
  }
  process.exit(EXIT_CODES.done);
}

export default command({
  about: "Runs everything on this machine until Ctrl-C: Postgres, the gateway, the functions, and Kafka on request.",
  options: START_OPTIONS,
  async run(values) {
    const stale = await staleFiles();
    if (stale.length > 0)
      throw new Refusal(
        `Generated files are stale: ${stale.join(", ")}. Write them with npm run manifests, or use npm run dev.`,
      );
    await runLotus(values, {});
  },
});
