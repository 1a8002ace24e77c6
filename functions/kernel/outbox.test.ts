import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, it, vi } from "vitest";
import { type Envelope, flushQueue, publish, publishLater } from "./outbox.ts";
import { PUBLISH_QUEUE_EVENTS_MAX } from "./settings.ts";

let sink: Server;
/** Of the requests that have come, in their order. */
const came: IncomingMessage["headers"][] = [];
/** Held until somebody opens the gate. */
let gate = Promise.resolve();

beforeAll(async () => {
  sink = createServer(async (request, response) => {
    came.push(request.headers);
    await gate;
    response.writeHead(request.headers["ce-type"] === "no-event" ? 400 : 202).end();
  });
  await new Promise<void>((resolve) => sink.listen(0, "127.0.0.1", resolve));
  process.env.K_SINK = `http://127.0.0.1:${(sink.address() as AddressInfo).port}`;
});
beforeEach(() => {
  came.length = 0;
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

it("holds as many events as its limit while the sink does not answer, says how many are left to the relay, and sends the rest", async () => {
  let open: () => void = () => undefined;
  gate = new Promise((resolve) => {
    open = resolve;
  });
  const lines: string[] = [];
  const written = vi.spyOn(process.stdout, "write").mockImplementation((line) => lines.push(String(line)) > 0);
  publishLater(many(PUBLISH_QUEUE_EVENTS_MAX + 7));
  written.mockRestore();
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([
    { level: "warning", message: "the publish queue is full; the relay will publish", count: 7 },
  ]);
  open();
  await flushQueue();
  expect(came).toHaveLength(PUBLISH_QUEUE_EVENTS_MAX);
  expect(new Set(came.map((headers) => headers["ce-id"])).size).toBe(PUBLISH_QUEUE_EVENTS_MAX);
});

it("sends what a header cannot hold in its place, and the topic beside it", async () => {
  await publish([envelope("1", { source: '/ключ "1%"' })]);
  expect(came).toMatchObject([
    {
      "ce-source": "/%D0%BA%D0%BB%D1%8E%D1%87%20%221%25%22",
      "lotus-topic": "sold",
      "content-type": "application/json",
    },
  ]);
});

it("tells those apart that the sink will never take, and sends all others", async () => {
  const batch = [...many(9), envelope("bad", { type: "no-event" })];
  const refused = await publish(batch);
  expect(refused.map(({ envelope: { event }, reason }) => [event.id, reason])).toEqual([
    ["bad", "The sink does not take it: to the sink it is no event (400)."],
  ]);
  expect(new Set(came.map((headers) => headers["ce-id"])).size).toBe(batch.length);
});
