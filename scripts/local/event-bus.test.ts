import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, it } from "vitest";
import { type KafkaSource, parseSource } from "../sources/delivery.ts";
import { call, eventually } from "../testing/lotus.ts";
import { createEventBus } from "./event-bus.ts";
import { listen } from "./gateway.ts";

const endings: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

interface Taken {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
  readonly at: number;
}

const source = (name: string, topic: string, retry: number, timeout: string) =>
  parseSource(
    `${name}.yaml`,
    JSON.stringify({
      apiVersion: "sources.knative.dev/v1",
      kind: "KafkaSource",
      metadata: { name },
      spec: {
        bootstrapServers: ["kafka:9092"],
        topics: [topic],
        consumerGroup: name,
        initialOffset: "earliest",
        ordering: "unordered",
        delivery: {
          retry,
          backoffPolicy: "exponential",
          backoffDelay: "PT0.02S",
          timeout,
          deadLetterSink: { ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name: "dead-letter" } },
        },
        sink: { ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name } },
      },
    }),
  ) as KafkaSource;

const SECRET = "the-secret-of-the-run";

/** A bus whose sources deliver to a server that answers as the test likes. */
async function bus(
  answer: (path: string, response: ServerResponse) => void,
  { names = ["fn"], retry = 3, timeout = "PT5S", waitingMax = 10_000 } = {},
) {
  const taken: Taken[] = [];
  const functions = createServer(async (incoming, outgoing) => {
    let body = "";
    for await (const chunk of incoming) body += chunk;
    taken.push({ path: incoming.url ?? "", headers: incoming.headers, body, at: performance.now() });
    answer(incoming.url ?? "", outgoing);
  }).listen(0);
  await once(functions, "listening");
  endings.push(async () => {
    functions.close();
    functions.closeAllConnections();
  });
  const told: string[] = [];
  const port = (functions.address() as AddressInfo).port;
  const created = createEventBus(
    new Map(),
    (name) => `http://127.0.0.1:${port}/${name}`,
    (name, message, how) => void told.push(`${name} ${message.headers["ce-id"]} ${how}`),
    SECRET,
    waitingMax,
  );
  created.add(names.map((name) => source(name, "told", retry, timeout)));
  const listening = await listen(created.server, 0, "127.0.0.1");
  endings.push(() => listening.stop());
  endings.push(() => created.stop());
  const url = `http://127.0.0.1:${listening.port}/${SECRET}`;
  const publish = (id: string, type = "lotus.told.v1", body: unknown = { id }) =>
    call({ url }, "POST /", {
      body,
      headers: { "ce-specversion": "1.0", "ce-id": id, "ce-source": "/test", "ce-type": type },
    });
  return { publish, taken, told, stop: () => created.stop() };
}

describe("the event bus", () => {
  it("delivers an event to every source of its topic, with its attributes and without other headers", async () => {
    const { publish, taken, told } = await bus((_, response) => void response.writeHead(204).end(), {
      names: ["one", "other"],
    });
    expect((await publish("1")).status).toBe(202);
    await eventually("both have delivered it", () => told.length === 2);
    expect(taken.map(({ path }) => path).sort()).toEqual(["/one", "/other"]);
    for (const { headers, body } of taken) {
      expect(headers).toMatchObject({
        "ce-id": "1",
        "ce-type": "lotus.told.v1",
        "content-type": "application/json",
        prefer: "reply",
      });
      expect(headers["user-agent"]).not.toBe("lotus");
      expect(body).toBe('{"id":"1"}');
    }
  });

  it.each([
    ["lotus.unheard.v1", 202],
    ["foreign.told", 400],
    ["", 400],
  ])("does not deliver an event of type %j, and answers %i", async (type, status) => {
    const { publish, taken } = await bus((_, response) => void response.end());
    expect((await publish("1", type)).status).toBe(status);
    expect(taken).toEqual([]);
  });

  it.each([500, 503, 404, 408, 409, 429])(
    "repeats a delivery that is answered %i, with growing pauses",
    async (status) => {
      const { publish, taken, told } = await bus(
        (path, response) => void response.writeHead(path === "/fn" ? status : 204).end("no"),
      );
      await publish("1");
      await eventually("it is a dead letter", () => told.includes("fn 1 dead-letter"));
      expect(taken.map(({ path }) => path)).toEqual(["/fn", "/fn", "/fn", "/fn", "/dead-letter"]);
      for (const [attempt, wait] of [40, 80, 160].entries()) {
        expect((taken[attempt + 1]?.at ?? 0) - (taken[attempt]?.at ?? 0)).toBeGreaterThanOrEqual(wait - 5);
      }
    },
  );

  it.each([400, 401, 413, 422, 301])(
    "does not repeat a delivery that is answered %i, and reports its end",
    async (status) => {
      const { publish, taken, told } = await bus(
        (path, response) => void response.writeHead(path === "/fn" ? status : 204).end("n".repeat(2000)),
      );
      await publish("1");
      await eventually("it is a dead letter", () => told.includes("fn 1 dead-letter"));
      expect(taken.map(({ path }) => path)).toEqual(["/fn", "/dead-letter"]);
      expect(taken[1]).toMatchObject({ body: '{"id":"1"}' });
      expect(taken[1]?.headers).toMatchObject({
        "ce-id": "1",
        "ce-knativeerrordest": "http://fn.lotus.svc.cluster.local",
        "ce-knativeerrorcode": String(status),
        "ce-knativeerrordata": Buffer.from("n".repeat(1024)).toString("base64"),
      });
    },
  );

  it("stops waiting for a function after its time limit, and drops an event that the dead-letter sink refuses", async () => {
    const { publish, taken, told } = await bus(() => undefined, { retry: 1, timeout: "PT1S" });
    await publish("1");
    await eventually("it is lost", () => told.includes("fn 1 lost"));
    expect(taken.map(({ path }) => path)).toEqual(["/fn", "/fn", "/dead-letter", "/dead-letter"]);
    expect(taken[2]?.headers["ce-knativeerrorcode"]).toBeUndefined();
  });

  it("delivers fifty events at a time, queues others up to its limit, and refuses further ones", async () => {
    const held: ServerResponse[] = [];
    let full = false;
    const { publish, taken, told } = await bus(
      (_, response) => {
        if (full) response.writeHead(204).end();
        else held.push(response);
      },
      { waitingMax: 100 },
    );
    const statuses = new Map<number, number>();
    let next = 0;
    const flood = async () => {
      while (next < 160) {
        const { status } = await publish(String(next++));
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
      }
    };
    await Promise.all(Array.from({ length: 20 }, flood));
    expect([...statuses]).toEqual([
      [202, 150],
      [503, 10],
    ]);
    await eventually("fifty are being delivered", () => held.length === 50);
    expect(taken).toHaveLength(50);
    full = true;
    for (const response of held) response.writeHead(204).end();
    await eventually("all accepted events are delivered", () => told.length === 150);
  });

  it("lets fifty events wait for their next attempt, without a warning", async () => {
    const warnings: string[] = [];
    const warn = (warning: Error) => void warnings.push(warning.message);
    process.on("warning", warn);
    endings.push(async () => void process.off("warning", warn));
    const { publish, told } = await bus((_, response) => void response.writeHead(500).end(), { retry: 1 });
    await Promise.all(Array.from({ length: 50 }, (_, id) => publish(String(id))));
    await eventually("the deliveries of all have failed", () => told.length === 50);
    expect(warnings).toEqual([]);
  });

  it("finishes deliveries in progress when it stops, and does not wait for further attempts", async () => {
    const held: ServerResponse[] = [];
    const { publish, taken, told, stop } = await bus((_, response) => void held.push(response));
    await publish("held");
    await publish("failing");
    await eventually("both are there", () => held.length === 2);
    const failing = taken.findIndex(({ headers }) => headers["ce-id"] === "failing");
    const stopped = stop();
    held[failing]?.writeHead(500).end();
    held[1 - failing]?.writeHead(204).end();
    await stopped;
    expect(told).toEqual(["fn held delivered"]);
    expect(taken).toHaveLength(2);
  });
});

describe("a source's file", () => {
  it.each([
    [{ metadata: { name: "x" }, spec: {} }, /^x\.yaml is not a source that can be run here\. /],
    [{ kind: "ApiServerSource" }, /kind: /],
  ])("is refused, by name, when it sets an unsupported field: %j", (part, sentence) => {
    const whole = { apiVersion: "sources.knative.dev/v1", kind: "KafkaSource", ...part };
    expect(() => parseSource("x.yaml", JSON.stringify(whole))).toThrow(sentence);
  });
});
