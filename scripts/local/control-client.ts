/** Calls the control channel of the Lotus that runs in a folder. */
import { Refusal } from "../cli/errors.ts";
import type { LogEvent, ProcessStatus } from "./control-messages.ts";
import { runOf } from "./run-file.ts";

/** A running Lotus. */
export interface RunningLotus {
  readonly pid: number;
  processes(): Promise<ProcessStatus[]>;
  /** Kills a process. @throws {Refusal} when it is unknown or does not run */
  kill(name: string): Promise<void>;
  /** Asks Lotus to stop, as Ctrl-C does. */
  stop(): Promise<void>;
  /**
   * Yields log lines and news until Lotus ends.
   * @param name only of this function
   * @param history how many earlier events to begin with
   */
  events(options: { readonly name?: string | undefined; readonly history: number }): AsyncGenerator<LogEvent>;
}

/** Connects to the Lotus of a folder. @throws {Refusal} when it does not run */
export async function runningLotus(folder: string): Promise<RunningLotus> {
  const run = await runOf(folder);
  const control = run?.control;
  if (run === undefined || control === undefined)
    throw new Refusal(`No Lotus runs in ${folder}. Start it with npm start, or name its folder with --folder.`);
  const call = async (method: string, path: string): Promise<Response> => {
    const answer = await fetch(`${control.url}${path}`, {
      method,
      headers: { authorization: `Bearer ${control.secret}` },
    }).catch(() => {
      throw new Refusal(`The Lotus in ${folder} (process ${run.pid}) does not answer. Is it stopping?`);
    });
    if (answer.ok) return answer;
    throw new Refusal(((await answer.json()) as { detail: string }).detail);
  };
  return {
    pid: run.pid,
    processes: async () => (await call("GET", "/processes")).json() as Promise<ProcessStatus[]>,
    kill: async (name) => void (await call("POST", `/processes/${encodeURIComponent(name)}/kill`)),
    stop: async () => void (await call("POST", "/stop")),
    async *events({ name, history }) {
      const query = new URLSearchParams({ history: String(history), ...(name !== undefined && { name }) });
      const { body } = await call("GET", `/events?${query}`);
      let text = "";
      try {
        for await (const chunk of (body ?? new ReadableStream()).pipeThrough(new TextDecoderStream())) {
          text += chunk;
          const blocks = text.split("\n\n");
          text = blocks.pop() ?? "";
          for (const block of blocks) {
            const data = /^data: (.*)$/m.exec(block)?.[1];
            if (data !== undefined) yield JSON.parse(data) as LogEvent;
          }
        }
      } catch (error) {
        // A Lotus that ends closes the stream.
        if (!(error instanceof TypeError)) throw error;
      }
    },
  };
}
