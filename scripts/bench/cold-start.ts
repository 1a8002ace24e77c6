/** The time from the start of a function's process to its first answer, beside a bare node:http script. */
import { readFile } from "node:fs/promises";
import { request } from "node:http";
import { programOf } from "../build/bundles.ts";
import { threadMilliseconds } from "../testing/process.ts";
import type { BenchOptions } from "./flags.ts";
import type { Figure } from "./report.ts";
import { program, start, withWorld } from "./world.ts";

export const about = "the start of a process until its first answer, beside a bare node:http script, and its memory";

const STARTS_EACH_ROUND = 3;
const RATIO_MAX = 2.2;
/** Node 24 itself needs 15 MiB more than Node 20. */
const MEMORY_MEBIBYTES_MAX = { 20: 55, 24: 70 };

/** A start and its first answer. */
export interface Start {
  readonly listening: number;
  readonly answered: number;
  /** CPU time until the answer. */
  readonly processor: number;
  readonly mebibytes: number;
}

/** A program and the call that it answers first. */
export interface Case {
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

/** Starts a program, calls it once, and stops it. Times in milliseconds. */
export async function measure(what: Case, environment: Readonly<Record<string, string>>, node: string): Promise<Start> {
  const began = performance.now();
  const { port, child, stop } = await start(what.file, environment, node);
  const listening = performance.now() - began;
  await call(port, what);
  const answered = performance.now() - began;
  const processor = await threadMilliseconds(child.pid ?? 0);
  const status = await readFile(`/proc/${child.pid}/status`, "utf8").catch(() => "");
  await stop();
  return { listening, answered, processor, mebibytes: Number(/VmRSS:\s*(\d+)/.exec(status)?.[1] ?? Number.NaN) / 1024 };
}

export default async function coldStart({ node, nodeMajor, rounds }: BenchOptions): Promise<Figure[]> {
  return withWorld(async (world) => {
    const database = await world.database();
    const [user] = await database.users(1);
    const pay = { file: programOf("order-pay"), call: "POST /order/pay?idSubscription=1" };
    const cases: Case[] = [
      { what: "order-pay, a refusal without the database", ...pay, status: 401 },
      { what: "order-pay, a payment", ...pay, status: 200, headers: { authorization: `Bearer ${user?.token}` } },
    ];
    const bare: Case = { what: "", file: program("bare.cjs"), call: "GET /", status: 200 };
    const environment = database.environmentOf("order-pay");
    const figures: Figure[] = [];
    for (const one of cases) {
      const starts: { lotus: Start[]; floor: Start[] } = { lotus: [], floor: [] };
      // The first start writes V8's code cache, which the images contain.
      for (const side of [one, bare]) await measure(side, environment, node);
      for (let round = 0; round < rounds * STARTS_EACH_ROUND; round++) {
        starts.lotus.push(await measure(one, environment, node));
        starts.floor.push(await measure(bare, environment, node));
      }
      const both = (figure: keyof Start) => ({
        lotus: starts.lotus.map((each) => each[figure]),
        floor: starts.floor.map((each) => each[figure]),
      });
      figures.push(
        {
          what: `cold start until the answer, ms: ${one.what}`,
          ...both("answered"),
          targets: [{ of: "floor", max: RATIO_MAX }],
        },
        { what: `CPU until the answer, ms: ${one.what}`, ...both("processor") },
        {
          what: `memory after it, MiB: ${one.what}`,
          ...both("mebibytes"),
          targets: [{ of: "lotus", max: MEMORY_MEBIBYTES_MAX[nodeMajor < 24 ? 20 : 24] }],
        },
      );
    }
    return figures;
  });
}
