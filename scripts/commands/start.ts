/** npm start: the whole system on this machine, until Ctrl-C. */
import { join, relative } from "node:path";
import { parseArgs } from "node:util";
import { messageOf, runCommand, UsageError } from "../cli/command.ts";
import { pretty, print, step, table } from "../cli/output.ts";
import { readDatabaseUrl } from "../database/connect.ts";
import { type Lotus, overview, startLotus } from "../local/lotus.ts";
import { ROOT } from "../project/functions.ts";

const HELP = `npm start -- [options]
  --port NUMBER      where to listen (default 8080)
  --host ADDRESS     the address to listen on (default 127.0.0.1: this machine only; 0.0.0.0: every network)
  --folder FOLDER    where data, passwords and keys are kept (default .lotus)
  --fresh            forget the data of earlier runs: our own Postgres and Kafka, never a given one
  --database URL     use this Postgres, as its owner, instead of one of our own
  --pooler URL       functions reach it through this pooler, such as postgres://localhost:6432; migrations do not
  --kafka            a real Kafka between the functions: KAFKA_BROKERS (which implies this), docker, or Java 17 and Maven
  --json             the functions' log lines as they are
  --quiet            no log lines
  --watch            build what changes; the next request runs it (npm run dev)
  --help             this`;

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        port: { type: "string", default: "8080" },
        host: { type: "string", default: "127.0.0.1" },
        folder: { type: "string", default: join(ROOT, ".lotus") },
        fresh: { type: "boolean", default: false },
        database: { type: "string" },
        pooler: { type: "string" },
        kafka: { type: "boolean", default: process.env.KAFKA_BROKERS !== undefined },
        json: { type: "boolean", default: false },
        quiet: { type: "boolean", default: false },
        watch: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    const port = Number(values.port);
    if (values.folder === "") throw new Error("--folder must name a folder");
    if (values.database !== undefined) readDatabaseUrl("--database", values.database);
    if (values.pooler !== undefined) {
      readDatabaseUrl("--pooler", values.pooler);
      if (values.database === undefined)
        throw new Error("--pooler needs --database: the same database without the pooler");
    }
    if (!/^\d+$/.test(values.port) || port > 65535) throw new Error(`--port must be 0 to 65535; ${values.port} is not`);
    return { ...values, port };
  } catch (error) {
    throw new UsageError(`${(error as Error).message.split(". ")[0]}.\n${HELP}`);
  }
}

/** What tells Lotus to stop. SIGHUP: its terminal was closed. */
const ENDS = { SIGINT: "Ctrl-C", SIGTERM: "SIGTERM", SIGHUP: "SIGHUP" };

/** Ended at once: what it leaves behind, the next start stops. As a shell has it of a program that Ctrl-C has ended. */
const FORCED_EXIT_CODE = 130;

/** System errors as sentences. */
function sentence(error: NodeJS.ErrnoException): string {
  const where = error.path === undefined ? "" : ` ${error.path}`;
  if (error.code === "EACCES" || error.code === "EPERM")
    return `This may not be written or read:${where}. Change its permissions, or run Lotus from another folder.`;
  if (error.code === "ENOTDIR" || error.code === "EEXIST")
    return `There is a file where a folder is needed:${where}. Choose another --folder.`;
  if (["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT"].includes(error.code ?? ""))
    return `Nothing answers where it was looked for: ${messageOf(error)}.`;
  if (error.code === "EROFS") return `The disk is read-only:${where}.`;
  if (error.code === "ENOSPC") return "The disk is full.";
  return messageOf(error);
}

const EXAMPLES = (url: string) => `
  Try, in a second terminal:
    npm run scenario
    curl ${url}/order/subscriptions
    curl -X POST ${url}/profile/register -H 'content-type: application/json' \\
         -d '{"email":"ada@example.com","password":"correct horse"}'
`;

async function main(): Promise<void> {
  const options = readOptions();
  if (options.help) return print(HELP);
  const began = performance.now();
  let lotus: Lotus | undefined;
  const finish = async (running: Lotus) => {
    try {
      await running.stop();
      const kept = `${relative(process.cwd(), options.folder)}/`;
      print(`Lotus has stopped. The data is kept in ${kept} for the next start.`);
    } catch (error) {
      console.error(`Lotus did not stop in order: ${(error as Error).message}`);
      process.exitCode = 1;
    }
  };
  let told = 0;
  const end = (why: string) => {
    told++;
    if (told === 2) return print("Still finishing what is in progress … Once more, and it ends at once.");
    if (told > 2) process.exit(FORCED_EXIT_CODE);
    print(`\n${why}: finishing what is in progress …`);
    if (lotus !== undefined) void finish(lotus);
  };
  for (const [signal, why] of Object.entries(ENDS)) process.on(signal, () => end(why));
  // Whoever read this has gone, as `| head` does. To say so would fail as well.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => told > 0 || end("Nobody reads this"));
  print("Lotus is starting.");
  try {
    lotus = await startLotus({
      port: options.port,
      host: options.host,
      folder: options.folder,
      fresh: options.fresh,
      watch: options.watch,
      kafka: options.kafka,
      ...(options.database === undefined ? {} : { databaseUrl: options.database }),
      ...(options.pooler === undefined ? {} : { pooler: options.pooler }),
      onLine: (name, line) => {
        if (!options.quiet) print(options.json ? line : pretty(name, line));
      },
      onNews: (name, news) => print(pretty(name, news)),
      // Told to stop, it begins nothing more, and stops what it has begun.
      step: async (what, work) => {
        if (told > 0) throw new Error("told to stop");
        return step(what, work);
      },
    });
  } catch (error) {
    // Ctrl-C reaches what a step runs as well, which then fails.
    if (told === 0) throw error;
    return print("Lotus has stopped before it was there.");
  }
  if (told > 0) return finish(lotus);
  print(`\nLotus is at ${lotus.url} (${((performance.now() - began) / 1000).toFixed(1)} s).\n`);
  print(table([["call", "where", "", "file"], ...(await overview())]));
  print(EXAMPLES(lotus.url));
  print("  Ctrl-C stops it.\n");
  // What an earlier run left in the outbox need not wait for the full minute.
  await lotus.tick();
}

runCommand(main, (error) => `Lotus did not start. ${sentence(error)}`);
