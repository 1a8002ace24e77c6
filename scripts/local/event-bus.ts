/** The broker of a run without Kafka: accepts CloudEvents over HTTP (K_SINK) and delivers them to the sources of their topic. */
import { setMaxListeners } from "node:events";
import type { IncomingMessage, Server } from "node:http";
import {
  EVENT_BODY_BYTES_MAX,
  EVENT_HEADER_BYTES_MAX,
  RECORD_BYTES_MAX,
  REQUESTS_INCOMPLETE_MAX,
} from "#kernel/limits";
import { createHttpServer } from "#kernel/listener";
import { forbidden, isForThisMachine, isFromPage, isSecret } from "#kernel/local-access";
import { writeProblem } from "#kernel/problem";
import { Receiver } from "#kernel/request-body";
import { type Delivered, deliver, type KafkaSource, type Message, type Resolve } from "../sources/delivery.ts";
import { forward, receive } from "./forward.ts";
import type { FunctionProcess } from "./function-process.ts";
import type { Observer } from "./observer.ts";

/** Events in memory for one source. The bus refuses more with 503; they stay in the outbox. */
const WAITING_EVENTS_MAX = 10_000;
/** The Retry-After of a 503. A source delivers more than a hundred events in this time. */
const RETRY_AFTER_SECONDS = 1;
/** Events of one source in delivery, as in Knative's data plane without ordering. */
const IN_FLIGHT_EVENTS_MAX = 50;

/** Is called with the result of a delivery. `reason` is a sentence, present unless the event was delivered. */
export type OnDelivered = (source: string, message: Message, how: Delivered["kind"], reason?: string) => void;

/** Delivers the events of one source, a bounded number at a time. */
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
    // Each event that waits for its next attempt adds a listener; Node warns of a leak at the eleventh.
    setMaxListeners(IN_FLIGHT_EVENTS_MAX, this.#stop.signal);
  }

  get name(): string {
    return this.#source.metadata.name;
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
        .then((fate) =>
          this.#onDelivered(
            this.#source.metadata.name,
            message,
            fate.kind,
            fate.kind === "delivered" ? undefined : fate.reason,
          ),
        )
        // The bus stopped while the event waited for its next attempt; the outbox row remains.
        .catch(() => undefined)
        .finally(() => {
          this.#inFlight.delete(delivery);
          this.#next();
        });
      this.#inFlight.add(delivery);
    }
  }

  /** Finishes deliveries in flight. Waiting events stay in the outbox. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#inFlight);
  }
}

/** Returns the topic that the header names, or else the topic of a Lotus type: lotus.user-registered.v1 -> user-registered. */
function topicOf({ "lotus-topic": topic, "ce-type": type }: IncomingMessage["headers"]): string | undefined {
  return typeof topic === "string" ? topic : /^lotus\.(.+)\.v\d+$/.exec(String(type))?.[1];
}

/** How the bus treats published events: `lose` accepts and drops them, as Kafka with a deleted topic; `refuse` answers 503. */
export type BusState = "deliver" | "lose" | "refuse";

export interface EventBus {
  /** POST /<secret> accepts an event; a request to /<secret>/<function> goes to that function. For 127.0.0.1 only. */
  readonly server: Server;
  /** Adds sources, which receive the events that are published from now on. */
  add(sources: readonly KafkaSource[]): void;
  /** Changes how the bus treats published events, for fault injection. */
  become(state: BusState): void;
  /** Removes the source of a function. Its waiting events stay in the outbox. */
  remove(name: string): void;
  /** Stops delivering. Deliveries in flight finish. */
  stop(): Promise<void>;
}

/**
 * Creates the server for calls inside Lotus: it accepts events, and forwards requests to functions by name.
 * @param resolve returns the URL of a function on this server
 * @param secret the secret of the run, which begins every path that the bus accepts
 * @param waitingMax events that wait for one source
 * @param observer is notified of each event and of each attempt to deliver one
 */
export function createEventBus(
  functions: ReadonlyMap<string, FunctionProcess>,
  resolve: Resolve,
  onDelivered: OnDelivered,
  secret: string,
  waitingMax = WAITING_EVENTS_MAX,
  observer?: Observer,
): EventBus {
  const queues: SourceQueue[] = [];
  let state: BusState = "deliver";
  const receiver = new Receiver(REQUESTS_INCOMPLETE_MAX, RECORD_BYTES_MAX);
  const take = ({ headers: given }: IncomingMessage, body: Buffer): number => {
    if (state !== "deliver") return state === "lose" ? 202 : 503;
    const topic = topicOf(given);
    if (body.length > EVENT_BODY_BYTES_MAX) return 413;
    if (topic === undefined) return 400;
    // A topic without a source is allowed: the producer does not know its consumers.
    const takers = queues.filter((queue) => queue.takes(topic));
    if (takers.some((queue) => queue.full)) return 503;
    const headers = Object.fromEntries(
      Object.entries(given).filter(
        (entry): entry is [string, string] =>
          (entry[0].startsWith("ce-") || entry[0] === "content-type") && typeof entry[1] === "string",
      ),
    );
    observer?.published(headers, body);
    for (const queue of takers) queue.add({ headers, body });
    return 202;
  };
  // A source makes headers of a record's key and headers; a smaller limit here would lose the event.
  const server = createHttpServer(EVENT_HEADER_BYTES_MAX, async (incoming, outgoing) => {
    const [, shown, name] = (incoming.url ?? "/").split("/");
    if (!isSecret(shown, secret) || isFromPage(incoming) || !isForThisMachine(incoming))
      return writeProblem(outgoing, forbidden());
    const received = await receive(receiver, incoming, outgoing);
    if (received === undefined) return;
    const fn = functions.get(name ?? "");
    if (fn !== undefined) {
      const began = performance.now();
      await forward(fn, incoming, outgoing, "/", received.body);
      const status = outgoing.headersSent ? outgoing.statusCode : 0;
      observer?.attempted(name ?? "", incoming.headers, received.body, status, performance.now() - began);
      return;
    }
    const status = take(incoming, received.body ?? Buffer.alloc(0));
    outgoing
      .writeHead(status, status === 503 && state === "deliver" ? { "retry-after": String(RETRY_AFTER_SECONDS) } : {})
      .end();
  });
  return {
    server,
    add(sources) {
      queues.push(...sources.map((source) => new SourceQueue(source, resolve, onDelivered, waitingMax)));
    },
    remove(name) {
      const index = queues.findIndex((queue) => queue.name === name);
      if (index !== -1) void queues.splice(index, 1)[0]?.stop();
    },
    become(next) {
      state = next;
    },
    async stop() {
      await Promise.all(queues.map((queue) => queue.stop()));
    },
  };
}
