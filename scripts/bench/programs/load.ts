/**
 * The load generator: a separate process with kept-alive connections, each with one request at a time. It uses plain sockets,
 * because on a machine of two cores the generator must cost less than the server that it measures.
 */
import { connect } from "node:net";
import { quantile } from "../statistics.ts";

export interface LoadRequest {
  readonly path: string;
  readonly token: string;
  readonly method?: "GET" | "POST";
  /** JSON. */
  readonly body?: string;
}

export interface LoadOptions {
  readonly port: number;
  readonly connections: number;
  readonly seconds: number;
  /** Sent in turn, again from the first after the last. */
  readonly requests: readonly LoadRequest[];
}

export interface LoadResult {
  readonly perSecond: number;
  readonly answers: number;
  readonly medianMilliseconds: number;
  readonly p99Milliseconds: number;
  /** Answers other than 2xx. */
  readonly failures: number;
}

function run({ port, connections, seconds, requests }: LoadOptions): Promise<LoadResult> {
  const texts = requests.map(({ method = "POST", path, token, body }) => {
    const content =
      body === undefined ? "\r\n" : `content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    return Buffer.from(`${method} ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${token}\r\n${content}`);
  });
  const took: number[] = [];
  let next = 0;
  let failures = 0;
  const began = performance.now();
  const until = began + seconds * 1_000;
  const one = () =>
    new Promise<void>((resolve, reject) => {
      const socket = connect({ port, host: "127.0.0.1", noDelay: true });
      let sent = 0;
      let received = "";
      const send = () => {
        sent = performance.now();
        socket.write(texts[next++ % texts.length] ?? "");
      };
      socket.once("connect", send);
      socket.once("error", reject);
      socket.on("data", (data) => {
        received += data.toString("latin1");
        const end = received.indexOf("\r\n\r\n");
        const length = /content-length: (\d+)/i.exec(received)?.[1];
        if (end < 0 || length === undefined || received.length < end + 4 + Number(length)) return;
        if (!received.startsWith("HTTP/1.1 20")) failures++;
        received = "";
        const now = performance.now();
        took.push(now - sent);
        if (now < until) return send();
        socket.destroy();
        resolve();
      });
      socket.once("end", () => reject(new Error("The server closed a connection.")));
    });
  return Promise.all(Array.from({ length: connections }, one)).then(() => ({
    perSecond: took.length / ((performance.now() - began) / 1_000),
    answers: took.length,
    medianMilliseconds: quantile(took, 0.5),
    p99Milliseconds: quantile(took, 0.99),
    failures,
  }));
}

process.on("message", (options: LoadOptions) => {
  run(options).then(
    (result) => process.send?.(result),
    (error: Error) => process.send?.({ error: error.message }),
  );
});
