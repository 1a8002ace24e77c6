/** The broker of a run without Kafka: takes CloudEvents over HTTP (K_SINK), and hands them to the sources of their topic. */
import { setMaxListeners } from "node:events";
import { createServer, type IncomingMessage, type Server } from "node:http";
import { EVENT_BODY_BYTES_MAX } from "#kernel/settings";
import { deliver, type KafkaSource, type Message, type Resolve } from "../sources/delivery.ts";
import type { FunctionProcess } from "./function-process.ts";
import { forward } from "./gateway.ts";

/** In memory, for one source. What does not fit is refused: it stays in the outbox, and the relay brings it again. */
const WAITING_EVENTS_MAX = 10_000;
/** Of one source, as with Knative's data plane when it delivers unordered. */
const IN_FLIGHT_EVENTS_MAX = 50;

/** Hears what became of an event that a source handed over. */
export type OnDelivered = (source: string, message: Message, how: Awaited<ReturnType<typeof deliver>>) => void;

/** Delivers one source's events, a bounded number at a time. */
class SourceQueue {
  readonly #waiting: Message[] = [];
  readonly #inFlight = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  readonly #source: KafkaSource;
  readonly #resolve: Resolve;
  readonly #onDelivered: OnDelivered;
  readonly #waitingMax: number;

  constructor(source: KafkaSource, resolve: Resolve, onDelivered: OnDelivered, waitingMax: number) {
    this.#source = source;
    this.#resolve = resolve;
    this.#onDelivered = onDelivered;
    this.#waitingMax = waitingMax;
    // Each event that waits for its next attempt listens; Node would warn of a leak at the eleventh.
    setMaxListeners(IN_FLIGHT_EVENTS_MAX, this.#stop.signal);
  }

  get full(): boolean {
    return this.#waiting.length >= this.#waitingMax;
  }

  takes(topic: string): boolean {
    return this.#source.spec.topics.includes(topic);
  }

  add(message: Message): void {
    this.#waiting.push(message);
    this.#next();
  }

  #next(): void {
    while (this.#inFlight.size < IN_FLIGHT_EVENTS_MAX && !this.#stop.signal.aborted) {
      const message = this.#waiting.shift();
      if (message === undefined) return;
      const delivery = deliver(message, this.#source.spec, this.#resolve, this.#stop.signal)
        .then((how) => this.#onDelivered(this.#source.metadata.name, message, how))
        // Stopped while it waited for the next attempt: its outbox row is still there.
        .catch(() => undefined)
        .finally(() => {
          this.#inFlight.delete(delivery);
          this.#next();
        });
      this.#inFlight.add(delivery);
    }
  }

  /** Lets what is being delivered finish; what waits is left to the outbox. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#inFlight);
  }
}

/** Reads a body to its end, so that whoever sends it hears the answer. Undefined: it is too long. */
async function readBody(incoming: IncomingMessage): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of incoming as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length <= EVENT_BODY_BYTES_MAX) chunks.push(chunk);
  }
  return length > EVENT_BODY_BYTES_MAX ? undefined : Buffer.concat(chunks);
}

/** The topic that a function names; else that of Lotus's own types: lotus.user-registered.v1 -> user-registered. */
function topicOf({ "lotus-topic": topic, "ce-type": type }: IncomingMessage["headers"]): string | undefined {
  return typeof topic === "string" ? topic : /^lotus\.(.+)\.v\d+$/.exec(String(type))?.[1];
}

export interface EventBus {
  /** POST / takes an event; any request to /<function> goes to that function. For 127.0.0.1 only. */
  readonly server: Server;
  /** Adds sources: they get what is published from now on. */
  add(sources: readonly KafkaSource[]): void;
  /** Stops delivering: what is in flight finishes. */
  stop(): Promise<void>;
}

/**
 * The entrance for calls inside: the event bus, and the functions by their names.
 * @param resolve gives the URL at which this very server reaches a function
 * @param waitingMax events that wait for one source
 */
export function createEventBus(
  functions: ReadonlyMap<string, FunctionProcess>,
  resolve: Resolve,
  onDelivered: OnDelivered,
  waitingMax = WAITING_EVENTS_MAX,
): EventBus {
  const queues: SourceQueue[] = [];
  const take = async (incoming: IncomingMessage): Promise<number> => {
    const topic = topicOf(incoming.headers);
    const body = await readBody(incoming);
    if (body === undefined) return 413;
    if (topic === undefined) return 400;
    // Nobody may take it: that is no mistake of its producer, here or at any other broker.
    const takers = queues.filter((queue) => queue.takes(topic));
    if (takers.some((queue) => queue.full)) return 503;
    const headers = Object.fromEntries(
      Object.entries(incoming.headers).filter(
        (entry): entry is [string, string] =>
          (entry[0].startsWith("ce-") || entry[0] === "content-type") && typeof entry[1] === "string",
      ),
    );
    for (const queue of takers) queue.add({ headers, body });
    return 202;
  };
  const server = createServer((incoming, outgoing) => {
    const fn = functions.get((incoming.url ?? "/").slice(1));
    if (fn !== undefined) return void forward(fn, incoming, outgoing, "/");
    take(incoming).then(
      (status) => outgoing.writeHead(status).end(),
      () => outgoing.destroy(),
    );
  });
  return {
    server,
    add(sources) {
      queues.push(...sources.map((source) => new SourceQueue(source, resolve, onDelivered, waitingMax)));
    },
    async stop() {
      await Promise.all(queues.map((queue) => queue.stop()));
    },
  };
}
