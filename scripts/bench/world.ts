/** The processes that the benches share: a Postgres, a sink for events and a load generator; users with money. */
import { type ChildProcess, fork } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmod, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { importJWK, SignJWT } from "jose";
import { Client } from "pg";
import { TOKEN_AUDIENCE, TOKEN_ISSUER, TOKEN_SECONDS } from "#kernel/settings";
import { buildFunctions, programOf } from "../build/bundles.ts";
import { migrate } from "../database/migrate.ts";
import { readPasswords, roleUrl } from "../database/roles.ts";
import { startPostgres } from "../local/postgres.ts";
import { ensureSecrets } from "../secrets/local.ts";
import { ending, readFlags } from "./flags.ts";
import type { LoadOptions, LoadResult } from "./programs/load.ts";

/** A process that listens. */
export interface Listening {
  readonly port: number;
  readonly child: ChildProcess;
  stop(): Promise<void>;
}

export interface User {
  readonly id: string;
  readonly token: string;
}

/** A migrated database of its own. */
export interface Database {
  /** Connected as the owner. */
  readonly admin: Client;
  /** The environment of a function of the service `order`. */
  readonly environment: Readonly<Record<string, string>>;
  /** The same for a program that speaks to Postgres itself. */
  readonly directEnvironment: Readonly<Record<string, string>>;
  /** Opens accounts and puts 1 000 000 000 on each. */
  users(count: number): Promise<User[]>;
}

export interface World {
  database(): Promise<Database>;
  /** Runs load against a port, from another process. Rejects when an answer was not 200. */
  load(options: Omit<LoadOptions, "connections" | "path">): Promise<LoadResult>;
  stop(): Promise<void>;
}

const CONNECTIONS = 16;
const DEPOSIT_MINOR_UNITS = 100_000_000_000n;

/** A program of the folder beside this file. */
export function program(file: string): string {
  return join(import.meta.dirname, "programs", file);
}

/** Starts a program and waits until it says its port. `file` may be TypeScript. */
export async function start(
  file: string,
  environment: Readonly<Record<string, string>>,
  node = process.execPath,
): Promise<Listening> {
  const child = fork(file, [], {
    env: { PATH: process.env.PATH, ...environment, PORT: "0" },
    execPath: node,
    execArgv: file.endsWith(".ts") ? ["--import", "tsx"] : [],
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
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

/** Starts it all in a folder of its own, does the work, and leaves nothing behind. */
export async function withWorld(work: (world: World) => Promise<void>): Promise<void> {
  const world = await startWorld();
  await ending(world.stop, () => work(world));
}

async function startWorld(): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-bench-"));
  // Run by root, Postgres runs as another user, who must be able to enter.
  await chmod(folder, 0o711);
  const endings: (() => Promise<unknown>)[] = [() => rm(folder, { recursive: true, force: true })];
  const stop = async () => {
    for (const end of endings.splice(0).reverse()) await end();
  };
  try {
    const [postgres] = await Promise.all([startPostgres(join(folder, "postgres")), buildFunctions()]);
    endings.push(() => postgres.stop());
    const secrets = join(folder, "secrets");
    await ensureSecrets(secrets, postgres.adminUrl);
    const passwords = await readPasswords(secrets);
    await migrate(postgres.adminUrl, passwords);
    const sink = await start(program("sink.ts"), {});
    endings.push(() => sink.stop());
    const generator = fork(program("load.ts"), [], { execArgv: ["--import", "tsx"] });
    endings.push(async () => generator.kill());
    const jwk = JSON.parse(await readFile(join(secrets, "signing-key", "key.json"), "utf8"));
    const key = await importJWK(jwk, "EdDSA");

    const database = async (): Promise<Database> => {
      const name = `bench_${randomUUID().replaceAll("-", "")}`;
      const server = new Client({ connectionString: postgres.adminUrl.replace(/\/lotus$/, "/postgres") });
      await server.connect();
      await server.query(`create database ${name} template lotus`);
      await server.end();
      const url = postgres.adminUrl.replace(/\/lotus$/, `/${name}`);
      await migrate(url, passwords);
      const admin = new Client({ connectionString: url });
      await admin.connect();
      endings.push(() => admin.end());
      const directEnvironment = {
        DATABASE_URL: Object.assign(new URL(roleUrl(url, "order")), { password: passwords.order }).href,
        JWKS_FILE: join(secrets, "public-keys", "jwks.json"),
      };
      return {
        admin,
        directEnvironment,
        environment: {
          ...directEnvironment,
          K_SINK: `http://127.0.0.1:${sink.port}`,
        },
        async users(count) {
          const ids = Array.from({ length: count }, () => randomUUID());
          await admin.query(
            `select billing.open_account(id, gen_random_uuid()), billing.transfer_unchecked(id, 'deposit', $2, null)
             from unnest($1::uuid[]) id`,
            [ids, DEPOSIT_MINOR_UNITS],
          );
          const tokenOf = (id: string) =>
            new SignJWT({ email: `${id}@example.com` })
              .setProtectedHeader({ alg: "EdDSA", kid: jwk.kid, typ: "JWT" })
              .setSubject(id)
              .setIssuer(TOKEN_ISSUER)
              .setAudience(TOKEN_AUDIENCE)
              .setIssuedAt()
              .setExpirationTime(`${TOKEN_SECONDS}s`)
              .sign(key);
          return Promise.all(ids.map(async (id) => ({ id, token: await tokenOf(id) })));
        },
      };
    };

    const load = async (options: Omit<LoadOptions, "connections" | "path">): Promise<LoadResult> => {
      const answered = once(generator, "message") as Promise<[LoadResult | { error: string }]>;
      generator.send({ ...options, connections: CONNECTIONS, path: "/order/pay?idSubscription=1" });
      const [result] = await answered;
      if ("error" in result) throw new Error(result.error);
      if (result.failures > 0) throw new Error(`${result.failures} payments failed.`);
      return result;
    };
    return { database, load, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** order-pay as a process, against a database. */
export function startPay(database: Database, node?: string): Promise<Listening> {
  return start(programOf("order-pay"), database.environment, node);
}

/** How a load is measured: rounds, seconds of one side of one round, and the Node that runs both sides. */
export type Options = ReturnType<typeof readLoadFlags>;

/** --rounds, --seconds, --node. */
export const readLoadFlags = (args: readonly string[]) => readFlags(args, { rounds: 9, seconds: 3 });

type Side = (seconds: number) => Promise<LoadResult>;

/** Loads two sides in turns, so that what else the machine does falls on both. Resolves to their payments a second. */
export async function alternate(
  { rounds, seconds }: Options,
  sides: readonly [Side, Side],
): Promise<[number[], number[]]> {
  const measured: [number[], number[]] = [[], []];
  // Until the code is compiled and the connections are open.
  for (const side of sides) await side(seconds);
  for (let round = 0; round < rounds; round++) {
    measured[0].push((await sides[0](seconds)).perSecond);
    measured[1].push((await sides[1](seconds)).perSecond);
  }
  return measured;
}
