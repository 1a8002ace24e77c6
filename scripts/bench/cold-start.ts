/** From the start of a function's process to its first answer, against a bare node:http script, one after the other. */
import { readFile } from "node:fs/promises";
import { request } from "node:http";
import { programOf } from "../build/bundles.ts";
import { readFlags } from "./flags.ts";
import { type Comparison, report } from "./report.ts";
import { program, start, withWorld } from "./world.ts";

export const about =
  "a process's start until its first answer, against a bare node:http script (≤ 2.3), and its memory";

const RATIO_MAX = 2.3;
const MEMORY_MEBIBYTES_MAX = 55;

interface Start {
  readonly listening: number;
  readonly answered: number;
  readonly mebibytes: number;
}

interface Case {
  readonly what: string;
  readonly file: string;
  readonly call: string;
  readonly status: number;
  readonly headers?: Record<string, string>;
}

function call(port: number, { call, headers, status }: Case): Promise<void> {
  const [method = "", path = ""] = call.split(" ");
  return new Promise((resolve, reject) => {
    const sending = request(
      { port, host: "127.0.0.1", method, path, headers: headers ?? {}, agent: false },
      (answer) => {
        answer.resume().once("end", () => {
          if (answer.statusCode === status) resolve();
          else reject(new Error(`${call} answered ${answer.statusCode}`));
        });
      },
    );
    sending.once("error", reject).end();
  });
}

async function measure(what: Case, environment: Readonly<Record<string, string>>, node: string): Promise<Start> {
  const began = performance.now();
  const { port, child, stop } = await start(what.file, environment, node);
  const listening = performance.now() - began;
  await call(port, what);
  const answered = performance.now() - began;
  const status = await readFile(`/proc/${child.pid}/status`, "utf8").catch(() => "");
  await stop();
  return { listening, answered, mebibytes: Number(/VmRSS:\s*(\d+)/.exec(status)?.[1] ?? Number.NaN) / 1024 };
}

export default async function coldStart(args: readonly string[]): Promise<void> {
  const { pairs, node } = readFlags(args, { pairs: 15 });
  await withWorld(async (world) => {
    const database = await world.database();
    const [user] = await database.users(1);
    const pay = { file: programOf("order-pay"), call: "POST /order/pay?idSubscription=1" };
    const subscriptions = { file: programOf("order-subscriptions"), call: "GET /order/subscriptions", status: 200 };
    const cases: Case[] = [
      { what: "order-pay, a refusal (no database)", ...pay, status: 401 },
      { what: "order-pay, a payment", ...pay, status: 200, headers: { authorization: `Bearer ${user?.token}` } },
      { what: "order-subscriptions, a list", ...subscriptions },
    ];
    const bare: Case = { what: "", file: program("bare.cjs"), call: "GET /", status: 200 };
    const comparisons: Comparison[] = [];
    for (const one of cases.toReversed()) {
      const starts: { lotus: Start[]; floor: Start[] } = { lotus: [], floor: [] };
      // Once before: from then on there is what V8 compiled.
      for (const side of [one, bare]) await measure(side, database.environment, node);
      for (let pair = 0; pair < pairs; pair++) {
        starts.lotus.push(await measure(one, database.environment, node));
        starts.floor.push(await measure(bare, database.environment, node));
      }
      const both = (figure: keyof Start) => ({
        lotus: starts.lotus.map((each) => each[figure]),
        floor: starts.floor.map((each) => each[figure]),
      });
      comparisons.unshift(
        { what: `${one.what}: listening, ms`, ...both("listening") },
        { what: `${one.what}: answered, ms`, ...both("answered"), ratioMax: RATIO_MAX },
        { what: `${one.what}: resident memory, MiB`, ...both("mebibytes"), lotusMax: MEMORY_MEBIBYTES_MAX },
      );
    }
    report(comparisons);
  });
}
