import { once } from "node:events";
import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, it, vi } from "vitest";
import { PUBLISH_PAUSE_MILLISECONDS, PUBLISH_QUEUE_EVENTS_MAX } from "./limits.ts";
import { type Envelope, flushQueue, publish, publishLater } from "./outbox.ts";

let sink: Server;
/** The headers of the received requests, in order. */
const came: IncomingMessage["headers"][] = [];
/** The time of each. */
const cameAt: number[] = [];
/** The sink answers when the test opens the gate. */
let gate = Promise.resolve();
/** Ids of events that the sink refuses once, because it is busy. */
const busyFor = new Set<string>();

beforeAll(async () => {
  sink = createServer(async (request, response) => {
    came.push(request.headers);
    cameAt.push(performance.now());
    await gate;
    if (busyFor.delete(String(request.headers["ce-id"]))) {
      response.writeHead(503, { "retry-after": "1" }).end();
    } else response.writeHead(request.headers["ce-type"] === "no-event" ? 400 : 202).end();
  });
  await new Promise<void>((resolve) => sink.listen(0, "127.0.0.1", resolve));
  process.env.K_SINK = `http://127.0.0.1:${(sink.address() as AddressInfo).port}`;
});
beforeEach(() => {
  came.length = 0;
  cameAt.length = 0;
  gate = Promise.resolve();
});
afterAll(() => {
  sink.closeAllConnections();
  sink.close();
});

const envelope = (id: string, attributes: object = {}): Envelope => ({
  topic: "sold",
  event: { specversion: "1.0", id, source: "/shop", type: "sold", data: {}, ...attributes },
});
const many = (count: number) => Array.from({ length: count }, (_, n) => envelope(String(n)));

it("queues events up to its limit while the sink does not answer, logs how many it leaves to the relay, and then sends the queue", async () => {
  let open: () => void = () => undefined;
  gate = new Promise((resolve) => {
    open = resolve;
  });
  const lines: string[] = [];
  const written = vi.spyOn(process.stdout, "write").mockImplementation((line) => lines.push(String(line)) > 0);
  publishLater(many(PUBLISH_QUEUE_EVENTS_MAX + 7));
  written.mockRestore();
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([
    { level: "warning", message: "the publish queue is full; the relay publishes the rest", count: 7 },
  ]);
  open();
  await flushQueue();
  expect(came).toHaveLength(PUBLISH_QUEUE_EVENTS_MAX);
  expect(new Set(came.map((headers) => headers["ce-id"])).size).toBe(PUBLISH_QUEUE_EVENTS_MAX);
});

it("encodes the characters that a header cannot contain, and sends the topic in a header", async () => {
  await publish([envelope("1", { source: '/ключ "1%"' })]);
  expect(came).toMatchObject([
    {
      "ce-source": "/%D0%BA%D0%BB%D1%8E%D1%87%20%221%25%22",
      "lotus-topic": "sold",
      "content-type": "application/json",
    },
  ]);
});

it("reports the events that the sink refuses, and sends all others", async () => {
  const batch = [...many(9), envelope("bad", { type: "no-event" })];
  const refused = await publish(batch);
  expect(refused.map(({ envelope: { event }, reason }) => [event.id, reason])).toEqual([
    ["bad", "The sink does not accept it: it is not an event (400)."],
  ]);
  expect(new Set(came.map((headers) => headers["ce-id"])).size).toBe(batch.length);
});

it("repeats only the events that a busy sink refused, within the time limit, and fails at once without one", async () => {
  for (const id of ["2", "5"]) busyFor.add(id);
  expect(await publish(many(10), performance.now() + 10_000)).toEqual([]);
  expect(
    came
      .map((headers) => headers["ce-id"])
      .slice(10)
      .sort(),
  ).toEqual(["2", "5"]);
  busyFor.add("3");
  await expect(publish(many(10))).rejects.toThrow("the sink answered 503");
});

it("publishes the events of one topic when those of another fail", async () => {
  const lines: string[] = [];
  const written = vi.spyOn(process.stdout, "write").mockImplementation((line) => lines.push(String(line)) > 0);
  busyFor.add("0");
  publishLater(many(4).map((one, index) => ({ ...one, topic: index === 0 ? "missing" : "sold" })));
  await flushQueue();
  written.mockRestore();
  expect(came.map((headers) => headers["ce-id"]).sort()).toEqual(["0", "1", "2", "3"]);
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([{ level: "warning", topic: "missing", count: 1 }]);
});

it("publishes an event at once when the queue was idle, and those that follow after the pause", async () => {
  const arrived = once(sink, "request");
  publishLater([envelope("first")]);
  await arrived;
  publishLater([envelope("second")]);
  publishLater([envelope("third")]);
  await flushQueue();
  expect(came.map((headers) => headers["ce-id"])).toEqual(["first", "second", "third"]);
  // Timers of Node may run a millisecond early.
  for (const at of cameAt.slice(1))
    expect(at - (cameAt[0] ?? 0)).toBeGreaterThanOrEqual(PUBLISH_PAUSE_MILLISECONDS - 1);
});
