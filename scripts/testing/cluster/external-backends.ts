/**
 * Runs Postgres and Kafka beside a cluster that cannot pull their images, and replaces KafkaSource where its controller is missing.
 *   node --import ./scripts/typescript.mjs scripts/testing/cluster/external-backends.ts --host 192.0.2.1      until Ctrl-C; pods reach this machine by that address
 */
import { type ChildProcess, spawn } from "node:child_process";
import { connect, createServer, type Server } from "node:net";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Kafka as KafkaClient, logLevel } from "kafkajs";
import { type Kafka, startKafka } from "../../kafka/cluster.ts";
import { withoutPassword } from "../../kubernetes/backends.ts";
import { type Postgres, startPostgres } from "../../local/postgres.ts";
import { PROGRAM, ROOT } from "../../project/paths.ts";

const POSTGRES_PORT = 15432;
/** Enough for three environments, each with the old and the new revision of every function. */
const CONNECTIONS_MAX = 1_000;
const KAFKA_PORT = 19092;
const PRIVATE_PORTS = { client: 29092, internal: 29093, controller: 29094 };

export interface ExternalBackends {
  /** The owner's URL with the password. Pods reach this address. */
  readonly databaseUrl: string;
  /** The same database, from this machine. */
  readonly localDatabaseUrl: string;
  /** For `npx lotus deploy --brokers`. */
  readonly kafka: string;
  stop(): Promise<void>;
}

/** The embedded Postgres listens on 127.0.0.1 only. This listener forwards the connections of pods to it. */
async function forward(port: number, to: number): Promise<Server> {
  const server = createServer((socket) => {
    const target = connect({ host: "127.0.0.1", port: to, noDelay: true });
    socket.setNoDelay(true).pipe(target).pipe(socket);
    for (const [one, other] of [
      [socket, target],
      [target, socket],
    ] as const) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, "0.0.0.0", resolve));
  return server;
}

/** Starts a broker that advertises `host`. Other started brokers advertise 127.0.0.1, which a pod resolves to itself. */
function startKafkaFor(host: string, folder: string): Promise<Kafka> {
  const { client, internal, controller } = PRIVATE_PORTS;
  const listeners = (address: string) =>
    `CLIENT://127.0.0.1:${client},INTERNAL://127.0.0.1:${internal},SECURED://${address}:${KAFKA_PORT}`;
  return startKafka({
    brokers: 1,
    folder,
    onProgress: (line) => console.log(line),
    secured: {
      protocol: "SASL_PLAINTEXT",
      // These properties replace those for one machine.
      properties: {
        listeners: `${listeners("0.0.0.0")},CONTROLLER://127.0.0.1:${controller}`,
        "advertised.listeners": listeners(host),
        "controller.quorum.voters": `1@127.0.0.1:${controller}`,
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,SECURED:PLAINTEXT,CONTROLLER:PLAINTEXT",
      },
    },
  });
}

async function kafkaAnswers(broker: string): Promise<void> {
  const admin = new KafkaClient({ brokers: [broker], logLevel: logLevel.NOTHING }).admin();
  await admin.connect();
  await admin.disconnect();
}

/** Replaces the data plane of KafkaSource: reads knative/sources/ and posts to the functions' addresses inside the cluster. */
export function startKafkaSource(broker: string): ChildProcess {
  const sinks = "http://{name}.lotus.svc.cluster.local";
  const args = [PROGRAM, "kafka-source", "--brokers", broker, "--sink-template", sinks];
  return spawn(process.execPath, args, { cwd: ROOT, stdio: ["ignore", "inherit", "inherit"] });
}

/**
 * Starts Postgres and Kafka.
 * @param host the address under which pods reach this machine
 * @param folder keeps their data
 */
export async function startExternalBackends(host: string, folder: string): Promise<ExternalBackends> {
  const postgres: Postgres = await startPostgres(join(folder, "postgres"), [
    "-c",
    `max_connections=${CONNECTIONS_MAX}`,
  ]);
  const forwarding = await forward(POSTGRES_PORT, postgres.port);
  const kafka = await startKafkaFor(host, join(folder, "kafka"));
  const broker = `${host}:${KAFKA_PORT}`;
  await kafkaAnswers(broker);
  const url = new URL(postgres.adminUrl);
  url.host = `${host}:${POSTGRES_PORT}`;
  url.searchParams.set("sslmode", "disable");
  return {
    databaseUrl: url.href,
    localDatabaseUrl: postgres.adminUrl,
    kafka: broker,
    async stop() {
      forwarding.close();
      await kafka.stop();
      await postgres.stop();
    },
  };
}

if (process.argv[1] === import.meta.filename) {
  const { values } = parseArgs({ options: { host: { type: "string" } } });
  if (values.host === undefined) throw new Error("Say how pods reach this machine: --host ADDRESS");
  const backends = await startExternalBackends(values.host, join(ROOT, ".lotus/external-backends"));
  const source = startKafkaSource(backends.kafka);
  const { password } = new URL(backends.databaseUrl);
  console.log(
    `DATABASE_ADMIN_PASSWORD='${decodeURIComponent(password)}' npx lotus deploy --database '${withoutPassword(backends.databaseUrl)}' --brokers ${backends.kafka}`,
  );
  const stop = () => {
    source.kill();
    void backends.stop().then(() => process.exit());
  };
  process.once("SIGINT", stop);
  process.once("SIGTERM", stop);
}
