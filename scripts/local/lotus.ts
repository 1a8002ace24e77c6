/** Runs Lotus on one machine: database, gateway, event bus and functions. `npm start` and the tests use it. */
import { randomBytes, randomUUID } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import type { Server } from "node:http";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { Cron } from "croner";
import { kafkaClient } from "#kernel/kafka";
import { POOL_CONNECTIONS_MAX, REQUEST_HEADER_BYTES_MAX } from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { readSettings } from "#kernel/settings";
import { type Built, buildFunctions, endEsbuild, programOf } from "../build/bundles.ts";
import { Refusal } from "../cli/errors.ts";
import { FAULT_MILLISECONDS } from "../console/faults.ts";
import { type Console, createConsole } from "../console/server.ts";
import type { ConnectionBudget } from "../database/connections.ts";
import { readInstallation } from "../database/installation.ts";
import { migrate } from "../database/migrate.ts";
import { readPasswords } from "../database/roles.ts";
import { SERVICES } from "../database/sql.ts";
import { type Kafka, startKafka } from "../kafka/cluster.ts";
import { hasEnded } from "../process/child.ts";
import { findFunctions, type LotusFunction } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { ensureSecrets } from "../secrets/local.ts";
import type { KafkaSource } from "../sources/delivery.ts";
import { createControl, type OtherProcess } from "./control.ts";
import { serveEdits } from "./edits.ts";
import { type BusState, createEventBus } from "./event-bus.ts";
import { FunctionProcess } from "./function-process.ts";
import { createGateway, type Listening, listen } from "./gateway.ts";
import { deliverFromKafka } from "./kafka-delivery.ts";
import { type Manifests, readManifests } from "./manifests.ts";
import { type OtlpReceiver, startOtlpReceiver } from "./otlp-receiver.ts";
import { erasePostgres, type Postgres, startPostgres } from "./postgres.ts";
import { type Addresses, takeFolder } from "./run-file.ts";
import { mapPositions } from "./source-maps.ts";

export interface LotusOptions {
  /** 0: any free port. */
  readonly port: number;
  /** The origins whose pages may call the endpoints. */
  readonly cors?: readonly string[];
  /** The address that the gateway listens on. The default is reachable from this machine only. */
  readonly host?: string;
  /** Keeps the data, the passwords and the keys. */
  readonly folder: string;
  /** Erase earlier data first. */
  readonly fresh?: boolean;
  /** Serve edits, as `npm run dev` does. */
  readonly watch?: boolean;
  /** An existing Postgres, as its owner, instead of the one that Lotus starts. */
  readonly databaseUrl?: string;
  /** The URL of a pooler between the functions and that Postgres, as roleUrl reads it. Migrations do not use it. */
  readonly pooler?: string;
  /** A real Kafka instead of the event bus: a running one, or (true) one that scripts/kafka/cluster.ts starts. */
  readonly kafka?: boolean | Kafka;
  /** The beginning of every topic and consumer group. The default is KAFKA_PREFIX. */
  readonly kafkaPrefix?: string;
  /** Whether this process delivers the events of Kafka. False: another process runs `lotus kafka-source`. */
  readonly deliver?: boolean;
  /** Whether PingSources fire when their time comes. False: only `tick` fires them. */
  readonly scheduled?: boolean;
  /** Export traces and metrics: to an OTLP endpoint, or (true) to a receiver in this process. */
  readonly otel?: string | true;
  /** The time after which a function's process without requests stops. Knative's default is a minute. */
  readonly idleMilliseconds?: number;
  /** Node options of a function's process, such as --inspect. */
  nodeOptionsOf?(name: string): readonly string[];
  /** Stops the program that called startLotus, when `lotus stop` asks for it. */
  onStopRequested?(): void;
  /** Serves the console at `/`. */
  readonly console?: boolean;
  /** The duration of a fault of the console. */
  readonly faultMilliseconds?: number;
  /** Do not build: dist/ is up to date. */
  readonly built?: boolean;
  /** Do not migrate: an earlier run with this folder has done it. The database may be unavailable. */
  readonly migrated?: boolean;
  onLine?(functionName: string, line: string): void;
  /** Is called for starts, crashes, rebuilds and lost events. */
  onNews?(functionName: string, news: string): void;
  /** Wraps a step that may take a while. */
  step?<T>(what: string, work: () => Promise<T>): Promise<T>;
}

/** How a function is called, by whom, and where its code is. */
export interface ServedFunction {
  readonly call: string;
  /** `with a token`, or empty. */
  readonly caller: string;
  readonly file: string;
}

export interface Lotus {
  readonly url: string;
  /** The address of the event bus, which ends in the secret of the run. Each function is at /<name> behind it. */
  readonly insideUrl: string;
  readonly adminUrl: string;
  readonly manifests: Manifests;
  readonly functions: ReadonlyMap<string, FunctionProcess>;
  /** The last traces and metrics, in a run with `otel: true`. */
  readonly telemetry: OtlpReceiver | undefined;
  /** The brokers, in a run with Kafka. */
  readonly kafka: Kafka | undefined;
  /** The KafkaSources that this process runs, with the names that they have in this installation. */
  readonly kafkaSources: readonly KafkaSource[];
  /** The served functions by name. */
  readonly served: ReadonlyMap<string, ServedFunction>;
  /** Changes how the event bus treats published events, for fault injection. Without effect in a run with Kafka. */
  disturbBus(state: BusState): void;
  /** Fires the PingSources now: all of them, or those of one function. */
  tick(functionName?: string): Promise<void>;
  /** Drains and ends everything. */
  stop(): Promise<void>;
}

/** The limits of restarts: their number within a time, and the pause between two. */
const POSTGRES_STARTS_MAX = 10;
const POSTGRES_STARTS_WINDOW_MILLISECONDS = 60_000;
const POSTGRES_START_AGAIN_MILLISECONDS = 500;

/** Starts Postgres in a folder, and starts it again at the same port when it ends by itself. */
async function runPostgres(
  folder: string,
  onNews: (who: string, news: string) => void,
): Promise<Pick<Postgres, "adminUrl" | "stop"> & { readonly process: OtherProcess }> {
  let postgres = await startPostgres(folder);
  let stopping = false;
  let starting: Promise<void> = Promise.resolve();
  let started: number[] = [];
  let starts = 1;
  const startAgain = async () => {
    while (!stopping) {
      const now = performance.now();
      started = started.filter((at) => now - at < POSTGRES_STARTS_WINDOW_MILLISECONDS);
      if (started.push(now) > POSTGRES_STARTS_MAX)
        return onNews("postgres", "ended several times in a short time. Stop Lotus with Ctrl-C and start it again.");
      await delay(POSTGRES_START_AGAIN_MILLISECONDS);
      try {
        postgres = await startPostgres(folder, [], postgres.port);
        starts++;
        onNews("postgres", "runs again");
        return watch();
      } catch (error) {
        onNews("postgres", `does not start: ${(error as Error).message}`);
      }
    }
  };
  const watch = () => {
    const ended = (code: number | null, signal: NodeJS.Signals | null) => {
      if (stopping) return;
      onNews("postgres", `ended, ${signal ?? `with exit code ${code}`}; it is started again`);
      starting = startAgain();
    };
    const { exitCode, signalCode } = postgres.process;
    if (exitCode === null && signalCode === null) postgres.process.once("exit", ended);
    else ended(exitCode, signalCode);
  };
  watch();
  return {
    adminUrl: postgres.adminUrl,
    process: {
      status: () => ({
        name: "postgres",
        kind: "postgres",
        state: hasEnded(postgres.process) ? "starting" : "running",
        ...(postgres.process.pid !== undefined && { pid: postgres.process.pid }),
        port: postgres.port,
        starts,
      }),
      kill: () => postgres.process.kill("SIGKILL"),
    },
    async stop() {
      stopping = true;
      await starting;
      await postgres.stop();
    },
  };
}

/** Listens on the address of the gateway. @throws {Refusal} that names another port or address */
function listenAt(server: Server, { port, host = "127.0.0.1" }: LotusOptions): Promise<Listening> {
  return listen(server, port, host).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "EADDRNOTAVAIL" || error.code === "ENOTFOUND")
      throw new Refusal(`This machine has no address ${host}. Choose another: npm start -- --host 127.0.0.1`);
    if (error.code !== "EADDRINUSE" && error.code !== "EACCES") throw error;
    const why = error.code === "EADDRINUSE" ? "is taken by another program" : "needs more rights than you have";
    throw new Refusal(`Port ${port} ${why}. Choose another: npm start -- --port ${port + 1}`);
  });
}

/** Publishes an event on the event bus as a foreign producer does. */
async function publishToBus(
  inside: string,
  topic: string,
  attributes: Readonly<Record<string, string>>,
  body: string,
): Promise<void> {
  const headers = Object.fromEntries(Object.entries(attributes).map(([name, value]) => [`ce-${name}`, value]));
  const answer = await fetch(inside, {
    method: "POST",
    headers: { ...headers, "lotus-topic": topic, "content-type": "application/json" },
    body,
  });
  await answer.arrayBuffer();
  if (!answer.ok) throw new Refusal(`The event bus answered ${answer.status}.`);
}

/** Publishes an event in Kafka as a foreign producer does. */
async function publishToKafka(
  brokers: readonly string[],
  topic: string,
  attributes: Readonly<Record<string, string>>,
  body: string,
): Promise<void> {
  const producer = (await kafkaClient(brokers)).producer();
  const headers = Object.fromEntries(Object.entries(attributes).map(([name, value]) => [`ce_${name}`, value]));
  await producer.connect();
  try {
    await producer.send({
      topic,
      messages: [{ value: body, headers: { ...headers, "content-type": "application/json" } }],
    });
  } finally {
    await producer.disconnect();
  }
}

/** All brokers of a Kafka as one. */
const restartable = (kafka: Kafka) => ({
  isRunning: () => kafka.running,
  kill: () => {
    for (const index of kafka.bootstrap.keys()) kafka.kill(index);
  },
  restart: async () => void (await Promise.all(kafka.bootstrap.map((_, index) => kafka.restart(index)))),
});

/** Shows the brokers as one process. */
function kafkaProcess(kafka: Kafka): OtherProcess {
  const { kill } = restartable(kafka);
  return {
    status: () => ({
      name: "kafka",
      kind: "kafka",
      state: kafka.running ? "running" : "zero",
      port: Number(kafka.bootstrap[0]?.split(":").at(-1)),
    }),
    kill() {
      const wasRunning = kafka.running;
      kill();
      return wasRunning;
    },
  };
}

/** Fires a PingSource once. */
async function ping(source: Manifests["pingSources"][number], url: string): Promise<void> {
  const { metadata, spec } = source;
  const answer = await fetch(url, {
    method: "POST",
    headers: {
      "ce-specversion": "1.0",
      "ce-id": randomUUID(),
      "ce-source": `/apis/v1/namespaces/lotus/pingsources/${metadata.name}`,
      "ce-type": "dev.knative.sources.ping",
      "ce-time": new Date().toISOString(),
      "content-type": spec.contentType ?? "application/json",
    },
    body: spec.data ?? "{}",
  });
  await answer.arrayBuffer();
  if (!answer.ok) throw new Error(`answered ${answer.status}`);
}

/**
 * Starts everything. Functions start at their first request.
 * @throws {Error} a the cause of the failure; Lotus has stopped the parts that it had started
 */
export async function startLotus(options: LotusOptions): Promise<Lotus> {
  const { folder } = options;
  const functions = new Map<string, FunctionProcess>();
  const others: OtherProcess[] = [];
  const descriptions = new Map<string, ServedFunction>();
  let publicUrl: string | undefined;
  const control = createControl({
    folder,
    functions,
    others,
    describe(name) {
      const { call, file } = descriptions.get(name) ?? {};
      return { ...(call && { call }), ...(file && { file }) };
    },
    url: () => publicUrl,
    stop: () => options.onStopRequested?.(),
  });
  const onNews = (name: string, told: string) => {
    const news = mapPositions(told);
    control.record("news", name, news);
    options.onNews?.(name, news);
  };
  const onLine = (name: string, written: string) => {
    const line = mapPositions(written);
    control.record("line", name, line);
    options.onLine?.(name, line);
  };
  const step = options.step ?? (<T>(_: string, work: () => Promise<T>) => work());
  const endings: (() => Promise<unknown>)[] = [];
  const stop = async () => {
    const failures: unknown[] = [];
    for (const end of endings.splice(0).reverse()) await end().catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw failures[0];
  };
  try {
    const runFile = await takeFolder(folder);
    endings.push(() => runFile.remove());
    // A busy port is reported before the database starts and the build runs.
    await (
      await listenAt(
        createHttpServer(REQUEST_HEADER_BYTES_MAX, () => undefined),
        options,
      )
    ).stop();
    const postgresFolder = join(folder, "postgres");
    const secrets = join(folder, "secrets");
    if (options.fresh) await step("Erasing the old data", () => erasePostgres(postgresFolder));

    const nothingBuilt: Built = { names: [], changed: [], failed: new Map() };
    const building = options.built ? Promise.resolve(nothingBuilt) : buildFunctions().finally(endEsbuild);
    building.catch(() => undefined);
    const database =
      options.databaseUrl === undefined
        ? await step("Starting Postgres", async () => {
            const postgres = await runPostgres(postgresFolder, onNews);
            endings.push(() => postgres.stop());
            others.push(postgres.process);
            return postgres.adminUrl;
          })
        : options.databaseUrl;
    await ensureSecrets(secrets, database, options.pooler);
    if (!options.migrated)
      await step("Migrating the database", async () =>
        migrate(database, await readPasswords(secrets), {
          // The Postgres of this folder serves one installation only.
          changePasswords: options.databaseUrl === undefined ? SERVICES : [],
          pooler: options.pooler,
          // Each function has one process. An embedded Postgres allows more connections.
          budget: options.pooler === undefined ? await localBudget() : undefined,
          tell: (news) => onNews("migrate", news),
        }),
      );
    const { failed } = options.built ? nothingBuilt : await step("Building the functions", () => building);

    const kafka =
      options.kafka === true
        ? await step("Starting Kafka", async () => {
            const started = await startKafka({
              brokers: 1,
              folder: join(folder, "kafka"),
              // Events in Kafka are about users of the erased database.
              fresh: options.fresh ?? false,
              onProgress: (line) => onNews("kafka", line),
            });
            endings.push(() => started.stop());
            return started;
          })
        : options.kafka || undefined;
    if (kafka?.owned) others.push(kafkaProcess(kafka));
    const secret = randomBytes(24).toString("base64url");
    await mkdir(join(secrets, "run"), { recursive: true, mode: 0o700 });
    await writeFile(join(secrets, "run", "secret"), secret, { mode: 0o600 });
    // `settings()` would keep these values, and a test gives its process the settings of a function afterwards.
    const kafkaPrefix = options.kafkaPrefix ?? readSettings(process.env).KAFKA_PREFIX;
    let inside = "";
    const resolve = (name: string) => `${inside}/${name}`;
    // The bus listens first: the environment of every function contains its address.
    const found = await findFunctions();
    const telemetry = options.otel === true ? await startOtlpReceiver() : undefined;
    if (telemetry !== undefined) endings.push(() => telemetry.stop());
    let console: Console | undefined;
    const tick = async (functionName?: string) => {
      const due = manifests.pingSources.filter(
        ({ spec }) => functionName === undefined || spec.sink.ref.name === functionName,
      );
      await Promise.all(due.map(fire));
    };
    if (options.console) {
      console = createConsole({
        control,
        databaseUrl: database,
        functions: found,
        withKafka: kafka !== undefined,
        ownPostgres: options.databaseUrl === undefined,
        telemetry,
        spanTarget: telemetry !== undefined ? "console" : options.otel === undefined ? "nowhere" : "elsewhere",
        kafka: kafka?.owned ? restartable(kafka) : undefined,
        faultMilliseconds: options.faultMilliseconds ?? FAULT_MILLISECONDS,
        url: () => publicUrl,
        publish: (topic, attributes, body) =>
          kafka === undefined
            ? publishToBus(inside, topic, attributes, body)
            : publishToKafka(kafka.bootstrap, `${kafkaPrefix}${topic}`, attributes, body),
        tick,
      });
    }
    const bus = createEventBus(
      functions,
      resolve,
      (source, message, how, reason) => {
        if (how !== "delivered")
          console?.ended(message.headers["ce-id"], how === "lost" ? "lost" : "dead letter", reason);
        if (how !== "delivered")
          onNews(source, `event ${message.headers["ce-id"]}: ${how === "lost" ? `lost. ${reason}` : "dead letter"}`);
      },
      secret,
      undefined,
      console?.observer,
    );
    const busListening = await listen(bus.server, 0, "127.0.0.1");
    inside = `http://127.0.0.1:${busListening.port}/${secret}`;
    const read = () =>
      readManifests(join(ROOT, "knative"), secrets, passedAsConfiguration(options), {
        ...passedOn(kafka !== undefined),
        K_SINK: inside,
        RUN_SECRET_FILE: join(secrets, "run", "secret"),
        ...(kafka && { KAFKA_BROKERS: kafka.bootstrap.join(","), KAFKA_PREFIX: kafkaPrefix }),
        ...telemetryVariables(options.otel, telemetry),
      });
    const manifests = await read();
    const routes = [...manifests.routes];
    if (kafka === undefined) bus.add(manifests.kafkaSources);
    const addFunction = (name: string, environment: Readonly<Record<string, string>>) =>
      functions.set(
        name,
        new FunctionProcess({
          name,
          file: programOf(name),
          environment,
          secret,
          nodeOptions: options.nodeOptionsOf?.(name) ?? [],
          idleMilliseconds: options.idleMilliseconds ?? 60_000,
          onLine,
          onStart: (started, milliseconds) => onNews(started, `started in ${Math.round(milliseconds)} ms`),
          onCrash: (crashed, how, lines) =>
            onNews(
              crashed,
              `ended ${how}; it starts again at its next request. Its last lines:\n${lines.map((line) => `    ${line}`).join("\n")}`,
            ),
        }),
      );
    for (const fn of found) {
      const caller = fn.kind === "endpoint" && fn.description.caller === "user" ? "with a token" : "";
      if (manifests.functions.has(fn.name)) descriptions.set(fn.name, { call: callOf(fn), caller, file: fn.file });
    }
    for (const [name, environment] of manifests.functions) addFunction(name, environment);
    for (const [name, errors] of failed) {
      functions.get(name)?.markOutdated();
      onNews(name, `does not compile.\n${errors}`);
    }
    // They end in the opposite order: the gateway, the events in flight, the functions, then Kafka and Postgres.
    endings.push(() => busListening.stop());
    endings.push(() => Promise.all([...functions.values()].map((fn) => fn.close())));
    endings.push(() => bus.stop());
    if (options.watch) {
      const watching = await serveEdits({
        functions,
        onNews,
        adminUrl: database,
        secrets,
        async apply() {
          const now = await read();
          for (const [name, fn] of functions) {
            if (now.functions.has(name)) continue;
            functions.delete(name);
            descriptions.delete(name);
            bus.remove(name);
            await fn.close();
          }
          const added = [...now.functions].filter(([name]) => !functions.has(name));
          for (const [name, environment] of added) addFunction(name, environment);
          routes.splice(0, routes.length, ...now.routes);
          const sources = now.kafkaSources.filter(({ metadata }) => added.some(([name]) => name === metadata.name));
          if (kafka === undefined) bus.add(sources);
          return added.map(([name]) => name);
        },
      });
      endings.push(() => watching.stop());
    }

    const fire = (source: Manifests["pingSources"][number]) =>
      ping(source, resolve(source.spec.sink.ref.name)).catch((error: Error) =>
        onNews(source.metadata.name, `not fired: ${error.message}`),
      );
    const gateway = createGateway(routes, functions, options.cors, console?.page, console?.observer);
    const listening = await listenAt(gateway, options);
    endings.push(() => listening.stop());
    // Before the gateway: it waits for open answers, and the stream of the console is one.
    endings.push(async () => console?.stop());
    const url = `http://localhost:${listening.port}`;
    publicUrl = url;
    const controlling = await listen(control.server, 0, "127.0.0.1");
    endings.push(async () => {
      control.server.closeAllConnections();
      await controlling.stop();
    });
    const addresses: Addresses = {
      control: { url: `http://127.0.0.1:${controlling.port}`, secret: control.secret },
      ...(kafka && { kafka: { bootstrap: kafka.bootstrap } }),
    };
    await runFile.publish({ url, ...addresses });
    endings.push(() => runFile.publish(addresses));

    const scheduled = options.scheduled === false ? [] : manifests.pingSources;
    const crons = scheduled.map((source) => new Cron(source.spec.schedule, () => fire(source)));
    // They stop before the gateway, which waits for the answers to their requests.
    endings.push(async () => crons.map((cron) => cron.stop()));

    // The gateway already serves, and does not wait for brokers that are down.
    const delivery =
      kafka &&
      (await step("Connecting to Kafka", () =>
        deliverFromKafka({
          brokers: kafka.bootstrap,
          prefix: kafkaPrefix,
          sources: options.deliver === false ? [] : manifests.kafkaSources,
          // Other installations may read the same topics of a Kafka that this run did not start.
          installation:
            options.kafka === true && kafka.owned ? async () => undefined : () => readInstallation(database),
          resolve,
          tell: onNews,
        }),
      ));
    if (delivery !== undefined) endings.push(() => delivery.stop());

    return {
      url,
      insideUrl: inside,
      adminUrl: database,
      telemetry,
      kafka,
      get kafkaSources() {
        return delivery?.sources() ?? [];
      },
      manifests,
      functions,
      served: descriptions,
      disturbBus: bus.become,
      tick,
      stop,
    };
  } catch (error) {
    await stop().catch(() => undefined);
    throw error;
  }
}

async function localBudget(): Promise<ConnectionBudget> {
  const functions = await findFunctions();
  const { DATABASE_POOL: pool } = process.env;
  return { connections: functions.length * Number(pool ?? POOL_CONNECTIONS_MAX), revisions: 1 };
}

/** Returns the entries of the ConfigMap `lotus` that a local run sets by its options and by variables of the same meaning. */
function passedAsConfiguration({ cors }: LotusOptions): Record<string, string> {
  const { DATABASE_PREPARE: prepare, DATABASE_POOL: pool } = process.env;
  return {
    ...(prepare !== undefined && { "database-prepare": prepare }),
    ...(pool !== undefined && { "database-pool": pool }),
    ...(cors !== undefined && { "cors-origins": cors.join(",") }),
  };
}

/** Spans reach the receiver of this process while a person waits for them, in milliseconds. */
const LOCAL_TRACES_DELAY_MILLISECONDS = 200;
const LOCAL_METRICS_INTERVAL_MILLISECONDS = 2_000;

/** Returns the variables that switch telemetry on. Variables of OpenTelemetry that the user has set count too. */
function telemetryVariables(otel: LotusOptions["otel"], receiver: OtlpReceiver | undefined): Record<string, string> {
  if (otel === undefined) return {};
  const given = Object.entries(process.env).filter(([name]) => name.startsWith("OTEL_"));
  const url = receiver?.url ?? String(otel);
  return {
    ...(receiver && {
      OTEL_BSP_SCHEDULE_DELAY: String(LOCAL_TRACES_DELAY_MILLISECONDS),
      OTEL_METRIC_EXPORT_INTERVAL: String(LOCAL_METRICS_INTERVAL_MILLISECONDS),
    }),
    ...(Object.fromEntries(given) as Record<string, string>),
    OTEL_EXPORTER_OTLP_ENDPOINT: url,
  };
}

/** Every user of a local run has the address of this machine. */
const LOCAL_REGISTRATIONS_PER_ADDRESS_MAX = 1_000_000;

/** Returns the variables that a function's process needs. The user's secrets are not among them. */
function passedOn(withKafka: boolean): Record<string, string> {
  const secured = Object.keys(process.env).filter((name) => withKafka && name.startsWith("KAFKA_"));
  const names = ["PATH", "TZ", "LANG", "DATABASE_TRANSPORT", "REGISTRATIONS_PER_ADDRESS_MAX", ...secured];
  const given = names.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]]));
  return {
    REGISTRATIONS_PER_ADDRESS_MAX: String(LOCAL_REGISTRATIONS_PER_ADDRESS_MAX),
    ...Object.fromEntries(given),
  };
}

/** Returns how a function is called: `POST /order/pay`, `topic user-registered`, `cron …`. */
function callOf(fn: LotusFunction): string {
  if (fn.kind === "endpoint") return `${fn.description.method} ${fn.path}`;
  if ("topic" in fn.description) return `topic ${fn.description.topic}`;
  return "schedule" in fn.description ? `cron ${fn.description.schedule}` : "dead letters";
}
