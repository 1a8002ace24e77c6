/** The console of a local run: serves the page at `/`, its stream and its API. Only pages of this gateway on this machine may use it. */
import { randomBytes, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import type { IncomingMessage, ServerResponse } from "node:http";
import { dirname, join } from "node:path";
import { forbidden, isForThisMachine, isSecret } from "#kernel/local-access";
import { Problem, quoted, writeProblem } from "#kernel/problem";
import { originForm } from "#kernel/request";
import { messageOf, Refusal } from "../cli/errors.ts";
import { connectTo } from "../database/client.ts";
import { CHECKS_COUNT, verifyLedger } from "../database/verify-ledger.ts";
import type { Control } from "../local/control.ts";
import type { Observer, Page } from "../local/observer.ts";
import type { OtlpReceiver } from "../local/otlp-receiver.ts";
import type { LotusFunction } from "../project/functions.ts";
import { ROOT } from "../project/paths.ts";
import { Assets, CONSOLE_PATH, docsHtml, pageHtml, securityHeaders } from "./assets.ts";
import { ConsoleDatabase } from "./database.ts";
import { type FaultOptions, Faults } from "./faults.ts";
import { Jobs } from "./jobs.ts";
import { isOfThisUser } from "./local-user.ts";
import type { DatabaseFigures, Snapshot, SpanTarget, Topology, TraceDetail } from "./protocol.ts";
import { Recorder } from "./recorder.ts";
import { Stream } from "./stream.ts";
import { Traces } from "./traces.ts";

const LOOK_MILLISECONDS = 1_000;
const EVENTS_IN_SNAPSHOT_MAX = 200;
const TOKEN_BYTES = 24;
const API_PATH = `${CONSOLE_PATH}api/`;
/** The header in which the page shows its token. A form or another site cannot set it. */
const TOKEN_HEADER = "lotus-console";
const LOOPBACK = /^(?:127\.|::1$|::ffff:127\.)/;

/** The run that the console shows and commands. */
export interface ConsoleOptions extends Pick<FaultOptions, "kafka" | "faultMilliseconds" | "publish" | "url" | "tick"> {
  readonly control: Control;
  /** The owner's URL of the database. */
  readonly databaseUrl: string;
  readonly functions: readonly LotusFunction[];
  /** Whether Kafka carries the events. Lotus may not have started it. */
  readonly withKafka: boolean;
  readonly ownPostgres: boolean;
  /** Receives the spans of the functions. Undefined: they go elsewhere, or nowhere. */
  readonly telemetry: OtlpReceiver | undefined;
  readonly spanTarget: SpanTarget;
}

/** The console as the run uses it. */
export interface Console {
  readonly page: Page;
  readonly observer: Observer;
  /** Records that an event became a dead letter or was lost. */
  ended(id: string | undefined, state: "dead letter" | "lost", reason: string | undefined): void;
  stop(): Promise<void>;
}

type Query = URLSearchParams;
/** Answers a call of the API with JSON. */
type Handler = (match: RegExpExecArray, query: Query) => Promise<unknown>;

/** Whether the source of a function, or a file of its service that it imports, publishes events. */
async function publishes({ file }: LotusFunction): Promise<boolean> {
  const path = join(ROOT, file);
  const text = await readFile(path, "utf8");
  const imported = [...text.matchAll(/from "(\.\/[^"]+)"/g)].map(([, target = ""]) => join(dirname(path), target));
  const texts = [text, ...(await Promise.all(imported.map((each) => readFile(each, "utf8"))))];
  return texts.some((each) => each.includes("publish("));
}

function topologyOf(
  functions: readonly LotusFunction[],
  topicsOf: ReadonlyMap<string, readonly string[]>,
  publishers: ReadonlySet<string>,
): Topology {
  const triggers = functions.flatMap(({ name, description }) =>
    "topic" in description ? [{ name, topic: description.topic }] : [],
  );
  const awaited = new Set(triggers.map(({ topic }) => topic));
  /** The database knows the topics of a service. Endpoints publish those with a subscriber; schedules publish the others. */
  const topicsFor = ({ name, service }: LotusFunction, hasSubscriber: boolean) =>
    publishers.has(name) ? (topicsOf.get(service) ?? []).filter((topic) => awaited.has(topic) === hasSubscriber) : [];
  return {
    endpoints: functions.flatMap((fn) =>
      fn.kind === "endpoint"
        ? [
            {
              name: fn.name,
              call: `${fn.description.method} ${fn.path}`,
              topics: fn.description.method === "POST" ? topicsFor(fn, true) : [],
            },
          ]
        : [],
    ),
    topics: [...new Set([...triggers.map(({ topic }) => topic), ...[...topicsOf.values()].flat()])].sort(),
    triggers,
    others: functions.flatMap((fn) => {
      const { name, description } = fn;
      const topics = topicsFor(fn, false);
      if ("schedule" in description) return [{ name, call: `cron ${description.schedule}`, topics }];
      return "deadLetters" in description ? [{ name, call: "dead letters", topics }] : [];
    }),
  };
}

/** Whether a request comes from this machine, and from no page of another origin (Fetch Metadata, DNS rebinding). */
function isOwn(incoming: IncomingMessage): boolean {
  const { headers, socket } = incoming;
  const { origin, host, "sec-fetch-site": site } = headers;
  if (!LOOPBACK.test(socket.remoteAddress ?? "") || !isForThisMachine(incoming)) return false;
  if (origin !== undefined && origin !== `http://${host}`) return false;
  // `none`: a person opened the address. A link on another site may also open the page (`cross-site`).
  return site === undefined || site === "same-origin" || site === "none" || isNavigation(incoming);
}

const isNavigation = ({ method, headers }: IncomingMessage) =>
  method === "GET" && headers["sec-fetch-mode"] === "navigate" && headers["sec-fetch-dest"] === "document";

function json(response: ServerResponse, body: unknown): void {
  response.writeHead(200, { ...securityHeaders(), "content-type": "application/json; charset=utf-8" });
  response.end(JSON.stringify(body));
}

/** Creates the console of a run. */
export function createConsole(options: ConsoleOptions): Console {
  const { control, functions, withKafka, ownPostgres } = options;
  const run = randomUUID().slice(0, 8);
  const token = randomBytes(TOKEN_BYTES).toString("base64url");
  const database = new ConsoleDatabase(options.databaseUrl);
  const assets = new Assets();
  let topology = topologyOf(functions, new Map(), new Set());
  let topologyKnown = false;
  let figures: DatabaseFigures | string = "The database was not read yet.";
  let processes = "";

  const traces = new Traces(options.telemetry);
  const recorder = new Recorder(control.history, traces, (event) => stream.event(event));
  const stream: Stream = new Stream(
    run,
    (): Snapshot => ({
      run,
      topology,
      kafka: options.kafka !== undefined ? "started" : withKafka ? "given" : "none",
      ownPostgres,
      spanTarget: options.spanTarget,
      spansReceived: traces.received,
      events: recorder.newest(EVENTS_IN_SNAPSHOT_MAX),
      lines: control.history(),
      processes: control.processes(),
      figures: recorder.figures(),
      database: figures,
      jobs: jobs.list(),
    }),
  );
  const unlisten = control.listen((event) => {
    recorder.line(event);
    stream.line(event);
    if (event.kind === "news") showProcesses();
  });
  const jobs = new Jobs((job) => stream.job(job));
  const faults = new Faults({ ...options, database, jobs });
  const verify = () =>
    jobs.start("verify", "Verify the ledger", async (progress) => {
      // Its own connection: the check of a large ledger takes longer than the limit of the others.
      const client = await connectTo(options.databaseUrl);
      try {
        const began = performance.now();
        let done = 0;
        progress({ done, of: CHECKS_COUNT, text: "The checks read short snapshots in chunks." });
        const report = (name: string) => progress({ done: ++done, of: CHECKS_COUNT, text: `It holds: ${name}.` });
        const difference = await verifyLedger(client, { report });
        if (difference !== undefined) throw new Refusal(difference);
        const { entries } = await database.ledger();
        const seconds = (performance.now() - began) / 1000;
        return `The ledger is right: ${entries} entries in ${seconds.toFixed(1)} s, ${Math.round(Number(entries) / seconds)} entries/s.`;
      } finally {
        await client.end();
      }
    });
  const showProcesses = () => {
    const now = control.processes();
    const text = JSON.stringify(now);
    if (text === processes) return;
    processes = text;
    stream.change({ processes: now });
  };

  const readDatabase = async () => {
    try {
      if (!topologyKnown) {
        const topics = new Map<string, string[]>();
        for (const { service, topic } of await database.publications())
          topics.set(service, [...(topics.get(service) ?? []), topic]);
        const found = await Promise.all(functions.map(async (fn) => ((await publishes(fn)) ? [fn.name] : [])));
        topology = topologyOf(functions, topics, new Set(found.flat()));
        topologyKnown = true;
      }
      figures = await database.figures();
      if (figures.outboxDepth > 0)
        for (const { headers, body } of await database.waiting()) recorder.waiting(headers, body);
    } catch (error) {
      figures = `The database does not answer: ${messageOf(error)}`;
    }
    stream.change({ database: figures });
  };
  let reading: Promise<void> | undefined;
  const look = async () => {
    showProcesses();
    stream.change({ figures: recorder.figures(), spansReceived: traces.received });
    reading ??= readDatabase().finally(() => {
      reading = undefined;
    });
    await reading;
  };
  const looking = setInterval(() => {
    if (stream.watched) void look();
  }, LOOK_MILLISECONDS).unref();

  const reads: [RegExp, Handler][] = [
    [
      /^events\/([^/]+)$/,
      async ([, id = ""]) => {
        const detail = recorder.detail(decodeURIComponent(id));
        if (detail === undefined)
          throw new Problem("not-found", "The console does not have this event. It keeps the newest events only.");
        return detail;
      },
    ],
    [/^traces$/, async () => traces.newest()],
    [
      /^traces\/([0-9a-f]{32})$/,
      async ([, trace = ""]): Promise<TraceDetail> => ({
        steps: traces.steps(trace, recorder.deliveriesOfTrace(trace)),
        events: recorder.eventsOfTrace(trace),
      }),
    ],
    [/^outbox$/, () => database.outbox()],
    [/^ledger$/, () => database.ledger()],
    [/^ledger\/accounts$/, (_, query) => database.accounts(query.get("search") ?? "")],
    [
      /^ledger\/accounts\/([0-9a-f-]{36})$/,
      async ([, id = ""], query) => {
        const before = query.get("before") ?? "";
        if (!/^\d{0,18}$/.test(before)) throw new Problem("invalid-request", "before must be the number of an entry.");
        const account = await database.account(id, before);
        if (account === undefined) throw new Problem("not-found", "The account does not exist.");
        return account;
      },
    ],
    [/^dead-letters$/, () => database.deadLetters()],
  ];
  const changes: [RegExp, Handler][] = [
    [/^ledger\/verify$/, async () => verify()],
    [/^faults\/([a-z-]+)$/, async ([, name = ""], query) => faults.start(name, query.get("target") ?? "order-pay")],
    [/^load$/, async (_, query) => faults.startLoad(Number(query.get("rate")), Number(query.get("seconds")))],
    [
      /^dead-letters\/(\d+|all)\/replay$/,
      async ([, which = ""]) => {
        const replayed = await database.replay(which);
        if (replayed.count > 0) await options.tick();
        void look();
        return replayed;
      },
    ],
    [
      /^processes\/([a-z0-9-]+)\/(kill|stop|freeze|thaw)$/,
      async ([, name = "", action]) => {
        const result = control.act(name, action as "kill" | "stop" | "freeze" | "thaw");
        if (result !== "done") {
          const why =
            result === "unknown-process" ? `No process is called ${name}.` : `${name} has no process for this now.`;
          throw new Problem("invalid-request", why);
        }
        showProcesses();
        return { done: true };
      },
    ],
  ];

  const openApi = async (incoming: IncomingMessage) => {
    const document = JSON.parse(await readFile(join(ROOT, "docs", "openapi.json"), "utf8")) as {
      servers: { url: string }[];
    };
    const own = { url: `http://${incoming.headers.host}` };
    return { ...document, servers: [own, ...document.servers.filter(({ url }) => url !== own.url)] };
  };

  const html = (outgoing: ServerResponse, text: string, policy: "page" | "docs") =>
    outgoing.writeHead(200, { ...securityHeaders(policy), "content-type": "text/html; charset=utf-8" }).end(text);

  const answer = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    const { pathname, searchParams } = new URL(originForm(incoming.url), "http://localhost");
    const { method = "GET", headers } = incoming;
    const isRead = method === "GET" || method === "HEAD";
    const isApi = pathname.startsWith(API_PATH);
    if (!isRead && !(method === "POST" && isApi))
      throw new Problem("method-not-allowed", undefined, {
        headers: { allow: isApi ? "GET, HEAD, POST" : "GET, HEAD" },
      });
    if (pathname === "/") return void html(outgoing, pageHtml(token), "page");
    if (pathname === "/docs") return void html(outgoing, docsHtml(), "docs");
    if (pathname === "/openapi.json") return json(outgoing, await openApi(incoming));
    if (pathname === `${CONSOLE_PATH}stream`) {
      if (!topologyKnown) await look();
      if (!stream.connect(incoming, outgoing))
        throw new Problem("unavailable", "Too many pages are open, or Lotus is stopping.");
      void look();
      return;
    }
    if (isApi) {
      if (!isRead && !isSecret(headers[TOKEN_HEADER], token))
        throw new Problem("forbidden", "The token of the page is missing or old. Reload the page.");
      const call = pathname.slice(API_PATH.length);
      for (const [pattern, handler] of isRead ? reads : changes) {
        const match = pattern.exec(call);
        if (match !== null) return json(outgoing, await handler(match, searchParams));
      }
      throw new Problem("not-found", `The console has no ${quoted(pathname)}.`);
    }
    const asset = await assets.get(pathname.slice(CONSOLE_PATH.length));
    if (asset === undefined) throw new Problem("not-found", `The console has no ${quoted(pathname)}.`);
    outgoing.writeHead(200, { ...securityHeaders(), "content-type": asset.type }).end(asset.body);
  };

  return {
    page: {
      has: (path) => path === "/" || path === "/docs" || path === "/openapi.json" || path.startsWith(CONSOLE_PATH),
      serve(incoming, outgoing) {
        const serve = async () => {
          incoming.resume();
          if (!isOwn(incoming) || !(await isOfThisUser(incoming.socket))) throw forbidden();
          await answer(incoming, outgoing);
        };
        serve().catch((error: unknown) => {
          if (outgoing.headersSent) return void outgoing.destroy();
          if (error instanceof Problem) return writeProblem(outgoing, error);
          if (error instanceof Refusal) return writeProblem(outgoing, new Problem("invalid-request", error.message));
          writeProblem(outgoing, new Problem("unavailable", `The console failed: ${messageOf(error)}`));
        });
      },
    },
    observer: recorder,
    ended: (id, state, reason) => recorder.ended(id, state, reason),
    async stop() {
      clearInterval(looking);
      unlisten();
      traces.stop();
      stream.stop();
      await jobs.stop();
      await reading;
      await database.stop();
    },
  };
}
