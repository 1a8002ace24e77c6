/** The processes that the benches share: a Postgres, a sink for events, a load generator and the sides that are compared. */
import { type ChildProcess, fork } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmod, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { importJWK, SignJWT } from "jose";
import { Client } from "pg";
import { TOKEN_AUDIENCE, TOKEN_ISSUER, TOKEN_SECONDS } from "#kernel/limits";
import { buildFunctions, endEsbuild, programOf } from "../build/bundles.ts";
import { migrate } from "../database/migrate.ts";
import { readPasswords, roleUrl } from "../database/roles.ts";
import { findKafka, startKafka } from "../kafka/cluster.ts";
import { startPostgres } from "../local/postgres.ts";
import { guardChild } from "../process/child.ts";
import { TYPESCRIPT } from "../project/paths.ts";
import { ensureSecrets } from "../secrets/local.ts";
import { makeTopic } from "../testing/kafka.ts";
import { threadMilliseconds, treeProcessorMilliseconds } from "../testing/process.ts";
import { ending } from "./flags.ts";
import type { LoadOptions, LoadRequest, LoadResult } from "./programs/load.ts";

/** A process that listens. */
export interface Listening {
  readonly port: number;
  readonly child: ChildProcess;
  stop(): Promise<void>;
}

export interface User {
  readonly id: string;
  readonly email: string;
  readonly token: string;
}

/** A new migrated database. */
export interface Database {
  /** Connected as the owner. */
  readonly admin: Client;
  /** Connects as the owner. */
  readonly adminUrl: string;
  /** Returns the environment of a function, such as order-pay. */
  environmentOf(name: string): Readonly<Record<string, string>>;
  /** Opens accounts and puts 1 000 000 000 on each. */
  users(count: number): Promise<User[]>;
}

/** One measurement of a side under load. */
export interface Sample extends LoadResult {
  /** CPU time of the process, and of all processes of Postgres, for each answer. */
  readonly processMicroseconds: number;
  readonly postgresMicroseconds: number;
}

export interface World {
  database(): Promise<Database>;
  /** Starts `floor.ts` or `conventional.ts` with accounts for these users, in a new database. */
  program(file: "floor.ts" | "conventional.ts", users: readonly User[], node: string): Promise<Listening>;
  /** Starts a broker, once, and returns its address. Undefined: this machine has neither docker nor Java with Maven. */
  brokers(): Promise<string | undefined>;
  /** Loads a process. Rejects when an answer was not 200. */
  load(side: Listening, options: Omit<LoadOptions, "port">): Promise<Sample>;
  stop(): Promise<void>;
}

/** The topic of the conventional implementation, with as many partitions as a topic of Lotus. */
const CONVENTIONAL_TOPIC = "notification-requested";
const TOPIC_PARTITIONS = 6;
const DEPOSIT_MINOR_UNITS = 100_000_000_000n;
const DEPOSITS_AT_A_TIME = 50;

async function deposit({ port }: Listening, { token }: User): Promise<void> {
  const url = `http://127.0.0.1:${port}/billing/add-money?money=${DEPOSIT_MINOR_UNITS / 100n}`;
  const { status } = await fetch(url, { method: "POST", headers: { authorization: `Bearer ${token}` } });
  if (status !== 200) throw new Error(`A deposit was answered ${status}.`);
}

/** Returns the path of a program in the folder beside this file. */
export function program(file: string): string {
  return join(import.meta.dirname, "programs", file);
}

/** Makes the requests of payments, one for each user. */
export function payments(users: readonly User[]): LoadRequest[] {
  return users.map(({ token }) => ({ path: "/order/pay?idSubscription=1", token }));
}

/** Starts a program and waits until it reports its port. `file` may be TypeScript. */
export async function start(
  file: string,
  environment: Readonly<Record<string, string>>,
  node = process.execPath,
): Promise<Listening> {
  const child = fork(file, [], {
    env: { PATH: process.env.PATH, ...environment, PORT: "0" },
    execPath: node,
    execArgv: file.endsWith(".ts") ? ["--import", TYPESCRIPT] : [],
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  guardChild(child);
  const ended = once(child, "exit");
  const [message] = await Promise.race([
    once(child, "message"),
    ended.then(([code]) => Promise.reject(new Error(`${file} ended with exit code ${code} before it listened.`))),
  ]);
  return {
    port: message.port,
    child,
    async stop() {
      child.kill("SIGTERM");
      await ended;
    },
  };
}

/** Starts the processes in a new folder, does the work, and stops them. */
export async function withWorld<T>(work: (world: World) => Promise<T>): Promise<T> {
  const world = await startWorld();
  return ending(world.stop, () => work(world));
}

async function startWorld(): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-bench-"));
  // Postgres runs as another user when root starts it, and must be able to enter.
  await chmod(folder, 0o711);
  const endings: (() => Promise<unknown>)[] = [() => rm(folder, { recursive: true, force: true })];
  const stop = async () => {
    for (const end of endings.splice(0).reverse()) await end();
  };
  try {
    const [postgres] = await Promise.all([
      startPostgres(join(folder, "postgres")),
      buildFunctions().finally(endEsbuild),
    ]);
    endings.push(() => postgres.stop());
    const secrets = join(folder, "secrets");
    await ensureSecrets(secrets, postgres.adminUrl);
    const passwords = await readPasswords(secrets);
    const sink = await start(program("sink.ts"), {});
    endings.push(() => sink.stop());
    const generator = fork(program("load.ts"), [], { execArgv: ["--import", TYPESCRIPT] });
    endings.push(async () => generator.kill());
    const jwk = JSON.parse(await readFile(join(secrets, "signing-key", "key.json"), "utf8"));
    const key = await importJWK(jwk, "EdDSA");
    const jwks = { JWKS_FILE: join(secrets, "public-keys", "jwks.json") };
    const signing = { SIGNING_KEY_FILE: join(secrets, "signing-key", "key.json") };

    const makeUser = async (id: string): Promise<User> => {
      const email = `${id}@example.com`;
      const token = await new SignJWT({ email })
        .setProtectedHeader({ alg: "EdDSA", kid: jwk.kid, typ: "JWT" })
        .setSubject(id)
        .setIssuer(TOKEN_ISSUER)
        .setAudience(TOKEN_AUDIENCE)
        .setIssuedAt()
        .setExpirationTime(`${TOKEN_SECONDS}s`)
        .sign(key);
      return { id, email, token };
    };
    const create = async (): Promise<string> => {
      const name = `bench_${randomUUID().replaceAll("-", "")}`;
      const server = new Client({ connectionString: postgres.adminUrl.replace(/\/lotus$/, "/postgres") });
      await server.connect();
      await server.query(`create database ${name}`);
      await server.end();
      return postgres.adminUrl.replace(/\/lotus$/, `/${name}`);
    };
    const connect = async (url: string): Promise<Client> => {
      const client = new Client({ connectionString: url });
      await client.connect();
      endings.push(() => client.end());
      return client;
    };

    const database = async (): Promise<Database> => {
      const adminUrl = await create();
      await migrate(adminUrl, passwords);
      const admin = await connect(adminUrl);
      const environmentOf = (name: string) => {
        const service = name.split("-")[0] ?? name;
        const url = Object.assign(new URL(roleUrl(adminUrl, service)), { password: passwords[service] });
        return { ...jwks, ...signing, DATABASE_URL: url.href, K_SINK: `http://127.0.0.1:${sink.port}` };
      };
      return {
        admin,
        adminUrl,
        environmentOf,
        async users(count) {
          const ids = Array.from({ length: count }, () => randomUUID());
          await admin.query("select billing.open_account(id, gen_random_uuid()) from unnest($1::uuid[]) id", [ids]);
          const users = await Promise.all(ids.map(makeUser));
          const deposits = await start(programOf("billing-add-money"), environmentOf("billing-add-money"));
          for (let from = 0; from < count; from += DEPOSITS_AT_A_TIME)
            await Promise.all(users.slice(from, from + DEPOSITS_AT_A_TIME).map((user) => deposit(deposits, user)));
          await deposits.stop();
          return users;
        },
      };
    };

    let started: Promise<string | undefined> | undefined;
    const startBroker = async (): Promise<string | undefined> => {
      if ((await findKafka()) === undefined) return undefined;
      const kafka = await startKafka({ brokers: 1, folder: join(folder, "kafka") });
      endings.push(() => kafka.stop());
      await makeTopic(kafka.bootstrap, CONVENTIONAL_TOPIC, TOPIC_PARTITIONS);
      return kafka.bootstrap.join(",");
    };
    const brokers = () => {
      started ??= startBroker();
      return started;
    };
    const startProgram: World["program"] = async (file, users, node) => {
      const url = await create();
      const kafka = file === "conventional.ts" ? { KAFKA_BROKERS: (await brokers()) ?? "" } : {};
      const side = await start(program(file), { ...jwks, ...kafka, DATABASE_URL: url }, node);
      const client = await connect(url);
      await client.query("insert into accounts (id, balance) select id, $2 from unnest($1::uuid[]) id", [
        users.map(({ id }) => id),
        DEPOSIT_MINOR_UNITS,
      ]);
      return side;
    };

    const load: World["load"] = async ({ port, child }, options) => {
      const processorTimes = () =>
        // The time of threads is exact; that of a process is counted in steps of 10 ms.
        Promise.all([threadMilliseconds(child.pid ?? 0), treeProcessorMilliseconds(postgres.process.pid ?? 0)]);
      const before = await processorTimes();
      const answered = once(generator, "message") as Promise<[LoadResult | { error: string }]>;
      generator.send({ ...options, port } satisfies LoadOptions);
      const [result] = await answered;
      if ("error" in result) throw new Error(result.error);
      if (result.failures > 0) throw new Error(`${result.failures} of ${result.answers} requests failed.`);
      const after = await processorTimes();
      const microseconds = (index: 0 | 1) => ((after[index] - before[index]) * 1_000) / result.answers;
      return { ...result, processMicroseconds: microseconds(0), postgresMicroseconds: microseconds(1) };
    };
    return { database, program: startProgram, brokers, load, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/**
 * Starts a function as a process, against a database.
 * @param brokers where it publishes; otherwise it publishes to the sink
 */
export function startFunction(database: Database, name: string, node: string, brokers?: string): Promise<Listening> {
  const kafka = brokers === undefined ? {} : { KAFKA_BROKERS: brokers };
  return start(programOf(name), { ...database.environmentOf(name), ...kafka }, node);
}

/**
 * Measures sides in alternation, so that other work of the machine falls on all of them. The first measurement of each side is
 * dropped: until then, code is compiled and connections are opened.
 */
export async function alternate<T>(rounds: number, sides: readonly (() => Promise<T>)[]): Promise<T[][]> {
  const measured: T[][] = sides.map(() => []);
  for (let round = -1; round < rounds; round++) {
    for (const [index, side] of sides.entries()) {
      const sample = await side();
      if (round >= 0) measured[index]?.push(sample);
    }
  }
  return measured;
}
