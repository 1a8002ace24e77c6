import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import { afterEach, expect, it } from "vitest";
import { listen } from "../local/gateway.ts";
import { deliver, deliverUnreadable, type KafkaSource } from "./delivery.ts";

const endings: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

const ref = (name: string) =>
  ({ ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name } }) as KafkaSource["spec"]["sink"];
const spec: KafkaSource["spec"] = {
  bootstrapServers: ["kafka:9092"],
  topics: ["told"],
  consumerGroup: "fn",
  initialOffset: "earliest",
  ordering: "unordered",
  delivery: { retry: 1, backoffPolicy: "exponential", backoffDelay: 10, timeout: 5_000, deadLetterSink: ref("dead") },
  sink: ref("fn"),
};

/** Answers as the test configures. Node answers 431 beyond 16 KiB of headers. */
async function functionsThat(answer: (path: string, response: ServerResponse) => void) {
  const requests: { path: string; headers: IncomingHttpHeaders; body: string }[] = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    requests.push({ path: request.url ?? "", headers: request.headers, body });
    answer(request.url ?? "", response);
  });
  const { port, stop } = await listen(server, 0, "127.0.0.1");
  endings.push(() => stop());
  return { requests, resolve: (name: string) => `http://127.0.0.1:${port}/${name}` };
}

const message = (extra: Record<string, string> = {}) => ({
  headers: { "ce-specversion": "1.0", "ce-type": "sold", "ce-source": "/shop", "ce-id": "1", ...extra },
  body: Buffer.from("data"),
});
const never = new AbortController().signal;

it("reaches the dead letters with shortened attributes when a server refuses its headers as too large", async () => {
  const { requests, resolve } = await functionsThat((_, response) => void response.writeHead(204).end());
  const many = Object.fromEntries(Array.from({ length: 300 }, (_, n) => [`ce-ext${n}`, "x".repeat(50)]));
  const large = message({ "ce-key": "k".repeat(400_000), ...many });
  const fate = await deliver(large, spec, resolve, never);
  expect(fate).toEqual({ kind: "dead-letter", reason: "fn answered 431" });
  expect(requests).toMatchObject([
    {
      path: "/dead",
      headers: {
        "ce-id": "1",
        "ce-source": "/shop",
        "ce-key": "k".repeat(2_048),
        "ce-knativeerrordest": "http://fn.lotus.svc.cluster.local",
        "ce-knativeerrorcode": "431",
      },
      body: "data",
    },
  ]);
});

it("is lost only with a reason that contains the answers of both functions", async () => {
  const { resolve } = await functionsThat((path, response) =>
    response.writeHead(path === "/fn" ? 400 : 500).end(path === "/fn" ? "bad data" : "database down"),
  );
  expect(await deliver(message(), spec, resolve, never)).toEqual({
    kind: "lost",
    reason: "fn answered 400 bad data; dead answered 500 database down",
  });
});

it("reaches the dead letters with the reason when the record cannot become a request", async () => {
  const { requests, resolve } = await functionsThat((_, response) => void response.writeHead(204).end());
  const fate = await deliverUnreadable(message(), "the record cannot become an event: why", spec, resolve, never);
  expect(fate).toEqual({
    kind: "dead-letter",
    reason: "fn was not called: the record cannot become an event: why",
  });
  expect(requests.map(({ path }) => path)).toEqual(["/dead"]);
  const data = Buffer.from(String(requests[0]?.headers["ce-knativeerrordata"]), "base64").toString();
  expect(data).toBe("the record cannot become an event: why");
});
