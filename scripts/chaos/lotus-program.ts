/**
 * Runs Lotus in a separate process, so that chaos can kill and halt the gateway. `lotus-process.ts` starts it and sends messages.
 * When the process is killed, its guard ends the functions.
 */
import { appendFileSync } from "node:fs";
import { startLotus } from "../local/lotus.ts";
import type { Answer, Question, Started, StartOptions } from "./lotus-process.ts";

const { functionOptions, logFile, ...options } = JSON.parse(process.argv[2] ?? "{}") as StartOptions;
const tell = (message: Answer | Started) => process.send?.(message);

/** Writes one line at once, because a fault may kill this process. */
const record = (who: string, line: string) =>
  appendFileSync(logFile, `${new Date().toISOString()} ${who}: ${line.trimEnd()}\n`);

record("lotus", "starts");
const lotus = await startLotus({
  ...options,
  nodeOptionsOf: () => functionOptions,
  onLine: record,
  onNews: record,
  async step(what, work) {
    record("lotus", what);
    return work();
  },
}).catch((error: Error) => {
  record("lotus", `failed to start: ${error.message}`);
  tell({ kind: "failed", sentence: error.message });
  return process.exit(1);
});

async function act(question: Question): Promise<Answer["functions"]> {
  if (question.kind === "tick") await lotus.tick();
  else if (question.kind === "bus") lotus.disturbBus(question.state);
  else if (question.kind === "replace") void lotus.functions.get(question.name)?.stop();
  else if (question.kind === "stop") await lotus.stop();
  else
    return [...lotus.functions].flatMap(([name, { running }]) =>
      running?.child.pid === undefined ? [] : [{ name, pid: running.child.pid }],
    );
  return undefined;
}

process.on("message", async (question: Question) => {
  const answer = await act(question).then(
    (functions) => ({ ...(functions && { functions }) }),
    (error: Error) => ({ failure: error.message }),
  );
  tell({ kind: "answer", id: question.id, ...answer });
  if (question.kind === "stop") process.disconnect();
});
// Chaos was killed, so its Postgres has ended too.
process.on("disconnect", () => process.exit());

record("lotus", "serves");
tell({
  kind: "started",
  url: lotus.url,
  insideUrl: lotus.insideUrl,
  sources: lotus.kafkaSources.map(({ spec: { topics, consumerGroup } }) => ({ topics, consumerGroup })),
});
