/** lotus trace-picture: prints one trace of a payment as a picture in text. docs/observability.md contains one. */
import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { command } from "../cli/command.ts";
import { Refusal } from "../cli/errors.ts";
import { print } from "../cli/output.ts";
import { startLotus } from "../local/lotus.ts";
import type { ReceivedSpan } from "../local/otlp-receiver.ts";
import { waitFor } from "../process/wait.ts";

const COLUMNS = 48;
const NAME_COLUMNS = 38;
const WAIT_MILLISECONDS_MAX = 30_000;
const STEP_MILLISECONDS = 50;

/** Returns a line for each span: its name below its parent, its bar on the time axis, its milliseconds and its function. */
function pictureOf(spans: readonly ReceivedSpan[]): string {
  const begin = Math.min(...spans.map(({ start }) => start));
  const length = Math.max(...spans.map(({ end }) => end)) - begin;
  const column = (time: number) => Math.round(((time - begin) / length) * (COLUMNS - 1));
  const known = new Set(spans.map(({ spanId }) => spanId));
  const below = (parent: string | undefined, depth: number): string[] =>
    spans
      .filter(({ parentSpanId }) => (parent === undefined ? !known.has(parentSpanId ?? "") : parentSpanId === parent))
      .flatMap(({ spanId, name, start, end, service }) => {
        const bar = "█".repeat(Math.max(1, column(end) - column(start)));
        const axis = `${" ".repeat(column(start))}${bar}`.padEnd(COLUMNS);
        const duration = ((end - start) / 1000).toFixed(1).padStart(8);
        return [
          `${`${"  ".repeat(depth)}${name}`.padEnd(NAME_COLUMNS)}${axis} ${duration} ms  ${service}`,
          ...below(spanId, depth + 1),
        ];
      });
  return below(undefined, 0).join("\n");
}

async function paintTrace(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-trace-"));
  const lotus = await startLotus({ port: 0, folder, fresh: true, otel: true });
  const call = async (method: string, path: string, token?: string, body?: object) => {
    const headers = {
      ...(body && { "content-type": "application/json" }),
      ...(token && { authorization: `Bearer ${token}` }),
    };
    return fetch(lotus.url + path, { method, headers, ...(body && { body: JSON.stringify(body) }) });
  };
  const until = async <T>(look: () => Promise<T | undefined> | T | undefined): Promise<T> => {
    const seen = await waitFor(look, { millisecondsMax: WAIT_MILLISECONDS_MAX, stepMilliseconds: STEP_MILLISECONDS });
    if (seen === undefined) throw new Refusal("The payment has no complete trace after 30 s.");
    return seen;
  };
  try {
    const user = { email: `${randomUUID()}@example.com`, password: randomUUID() };
    await call("POST", "/profile/register", undefined, user);
    const { token } = (await (await call("POST", "/profile/login", undefined, user)).json()) as { token: string };
    await until(async () => ((await call("POST", "/billing/add-money?money=1000", token)).ok ? true : undefined));
    const answer = await call("POST", "/order/pay?idSubscription=1", token);
    const id = answer.headers.get("traceresponse")?.split("-")[1] ?? "";
    const spans = await until(() => {
      const seen = lotus.telemetry?.trace(id) ?? [];
      const names = seen.map(({ name }) => name);
      return ["POST /order/pay", "notification.store"].every((name) => names.includes(name)) ? seen : undefined;
    });
    print(pictureOf(spans));
  } finally {
    await lotus.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

export default command({
  about: "Pays once in an empty Lotus and prints the trace of the payment as a picture in text.",
  options: {},
  run: paintTrace,
});
