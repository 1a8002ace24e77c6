/**
 * The flood: a separate process that sends requests at a rate, whether or not earlier ones are answered. It uses plain sockets,
 * because on a machine of two cores the generator must cost less than the server that it measures.
 */
import { connect, type Socket } from "node:net";
import { quantile } from "../statistics.ts";
import type { LoadRequest } from "./load.ts";

const STEP_MILLISECONDS = 5;
/** A function answers within 20 s. A later answer counts as missing. */
const ANSWER_MILLISECONDS_MAX = 25_000;
const REPORT_MILLISECONDS = 1_000;

export interface FloodOptions {
  readonly port: number;
  /** Open connections, each with one request at a time. */
  readonly connections: number;
  readonly perSecond: number;
  readonly seconds: number;
  /** Sent in turn, again from the first after the last. */
  readonly requests: readonly LoadRequest[];
}

/** The numbers of answers so far. */
export interface FloodCounts {
  readonly sent: number;
  readonly accepted: number;
  /** 503 with Retry-After. */
  readonly refused: number;
  /** Answers of any other kind, and connections that broke. */
  readonly others: number;
}

export interface FloodResult extends FloodCounts {
  readonly kind: "ended";
  readonly acceptedP99Milliseconds: number;
  /** From the end of the sending to the last answer. */
  readonly lastAnswerMilliseconds: number;
}

/** A message of the flood: its state, about once a second, or its result. */
export type FloodMessage = (FloodCounts & { readonly kind: "running" }) | FloodResult;

async function run({ port, connections, perSecond, seconds, requests }: FloodOptions): Promise<void> {
  const texts = requests.map(({ path, token }) =>
    Buffer.from(`POST ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${token}\r\n\r\n`),
  );
  const took: number[] = [];
  let [sent, refused, others] = [0, 0, 0];
  let ending = false;
  const idle: Socket[] = [];
  const sentAt = new Map<Socket, number>();
  const open = () =>
    new Promise<void>((resolve) => {
      const socket = connect({ port, host: "127.0.0.1", noDelay: true });
      let received = "";
      const isFree = () => {
        received = "";
        sentAt.delete(socket);
        idle.push(socket);
      };
      socket.once("connect", () => {
        isFree();
        resolve();
      });
      socket.on("error", () => undefined);
      socket.on("data", (data) => {
        received += data.toString("latin1");
        const end = received.indexOf("\r\n\r\n");
        const length = /content-length: (\d+)/i.exec(received)?.[1];
        if (end < 0 || length === undefined || received.length < end + 4 + Number(length)) return;
        if (received.startsWith("HTTP/1.1 20")) took.push(performance.now() - (sentAt.get(socket) ?? 0));
        else if (received.startsWith("HTTP/1.1 503") && /retry-after: /i.test(received)) refused++;
        else others++;
        isFree();
      });
      socket.once("close", () => {
        resolve();
        if (sentAt.delete(socket)) others++;
        const index = idle.indexOf(socket);
        if (index >= 0) idle.splice(index, 1);
        if (!ending) setTimeout(open, STEP_MILLISECONDS);
      });
    });
  const counts = (): FloodCounts => ({ sent, accepted: took.length, refused, others });
  const wait = () => new Promise((resolve) => setTimeout(resolve, STEP_MILLISECONDS));
  await Promise.all(Array.from({ length: connections }, open));
  const began = performance.now();
  let reportedAt = began;
  for (let elapsed = 0; elapsed < seconds * 1_000; elapsed = performance.now() - began) {
    // A rate that the connections do not reach must not become a burst later.
    for (let due = Math.round((perSecond * STEP_MILLISECONDS) / 1_000); due > 0; due--) {
      const socket = idle.shift();
      if (socket === undefined) break;
      sentAt.set(socket, performance.now());
      socket.write(texts[sent++ % texts.length] ?? "");
    }
    if (performance.now() - reportedAt >= REPORT_MILLISECONDS) {
      reportedAt = performance.now();
      process.send?.({ kind: "running", ...counts() } satisfies FloodMessage);
    }
    await wait();
  }
  const sentLast = performance.now();
  const until = sentLast + ANSWER_MILLISECONDS_MAX;
  while (sentAt.size > 0 && performance.now() < until) await wait();
  others += sentAt.size;
  process.send?.({
    kind: "ended",
    ...counts(),
    acceptedP99Milliseconds: quantile(took, 0.99),
    lastAnswerMilliseconds: performance.now() - sentLast,
  } satisfies FloodMessage);
  ending = true;
  for (const socket of [...idle, ...sentAt.keys()]) socket.destroy();
}

process.once("message", (options: FloodOptions) => void run(options));
process.once("disconnect", () => process.exit());
