/** Injects faults into a local run, each under a small load that measures its effect. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { Refusal } from "../cli/errors.ts";
import type { Control } from "../local/control.ts";
import { attempt } from "../process/run.ts";
import { PROGRAM } from "../project/paths.ts";
import type { ConsoleDatabase } from "./database.ts";
import type { Jobs } from "./jobs.ts";
import { Load, type LoadResult } from "./load.ts";
import type { Job } from "./protocol.ts";

const FAULT_LOAD_PER_SECOND = 20;
/** Sets the duration of a fault, unless the options give another. */
export const FAULT_MILLISECONDS = 5_000;
/** The load begins before a fault and ends after it. Both are parts of the duration of the fault. */
const CALM_BEFORE = 0.4;
const LOAD_DURATION = 1.6;
const CUT_STEP_MILLISECONDS = 50;
const KILLS = 3;
const LOAD_PER_SECOND_MAX = 500;
const LOAD_SECONDS_MAX = 120;

/** The brokers of the run, as one. */
interface OwnKafka {
  isRunning(): boolean;
  kill(): void;
  restart(): Promise<void>;
}

/** The parts of the run that faults use. */
export interface FaultOptions {
  readonly control: Control;
  readonly database: ConsoleDatabase;
  readonly jobs: Jobs;
  readonly ownPostgres: boolean;
  readonly faultMilliseconds: number;
  /** Stops the brokers and starts them again. Undefined: Lotus did not start the brokers. */
  readonly kafka: OwnKafka | undefined;
  url(): string | undefined;
  /** Publishes an event as a foreign producer does. */
  publish(topic: string, attributes: Readonly<Record<string, string>>, body: string): Promise<void>;
  /** Publishes overdue events now. */
  tick(): Promise<void>;
}

const amount = (minorUnits: string) => `${(Number(minorUnits) / 100).toFixed(2)}`;

function proof({ answered, repeated, unanswered, outboxPeak, drainedMilliseconds, trialBalance }: LoadResult): string {
  const drained =
    drainedMilliseconds === undefined
      ? "The outbox did not drain."
      : `The outbox was empty ${(drainedMilliseconds / 1000).toFixed(1)} s after the end.`;
  return `${answered} of ${answered + unanswered} payments answered, ${repeated} of them after a repeat. Outbox at most ${outboxPeak}. ${drained} Trial balance ${amount(trialBalance)}.`;
}

/** Starts faults, the scenario and loads as jobs. */
export class Faults {
  readonly #options: FaultOptions;
  readonly #load = new Load();

  constructor(options: FaultOptions) {
    this.#options = options;
  }

  /** Starts a fault by its name. @throws {Refusal} when this run does not allow it */
  start(name: string, target: string): Job {
    const { control, database, faultMilliseconds } = this.#options;
    if (name === "kill") {
      return this.#underLoad(`Kill ${target}`, async (stop) => {
        for (let kill = 0; kill < KILLS && !stop.aborted; kill++) {
          control.act(target, "kill");
          await delay(faultMilliseconds / KILLS);
        }
      });
    }
    if (name === "freeze") {
      return this.#underLoad(`Freeze ${target}`, async () => {
        if (control.act(target, "freeze") !== "done")
          throw new Refusal(`${target} has no process now. Send it a request first.`);
        try {
          await delay(faultMilliseconds);
        } finally {
          control.act(target, "thaw");
        }
      });
    }
    if (name === "cut-database") {
      this.#needOwnPostgres();
      return this.#underLoad("Cut the database", async (stop) => {
        const until = performance.now() + faultMilliseconds;
        while (performance.now() < until && !stop.aborted) {
          await database.cutFunctions();
          await delay(CUT_STEP_MILLISECONDS);
        }
      });
    }
    if (name === "kill-database") {
      this.#needOwnPostgres();
      return this.#underLoad("Kill Postgres", async () => void control.act("postgres", "kill"));
    }
    if (name === "stop-kafka" || name === "start-kafka") {
      const { kafka } = this.#options;
      if (kafka === undefined)
        throw new Refusal("Lotus stops only a Kafka that it started by itself: npm start -- --kafka.");
      return name === "stop-kafka" ? this.#stopKafka(kafka) : this.#startKafka(kafka);
    }
    if (name === "poison") return this.#poison();
    if (name === "scenario") return this.#scenario();
    throw new Refusal(`The console has no fault ${name}.`);
  }

  /** Starts a load. @throws {Refusal} when a number is outside its limits */
  startLoad(perSecond: number, seconds: number): Job {
    const check = (value: number, most: number, what: string) => {
      if (!Number.isInteger(value) || value < 1 || value > most)
        throw new Refusal(`${what} must be a whole number from 1 to ${most}.`);
    };
    check(perSecond, LOAD_PER_SECOND_MAX, "The number of payments a second");
    check(seconds, LOAD_SECONDS_MAX, "The number of seconds");
    return this.#run(`${perSecond} payments/s for ${seconds} s`, perSecond, seconds);
  }

  #stopKafka(kafka: OwnKafka): Job {
    const { faultMilliseconds } = this.#options;
    return this.#underLoad("Stop Kafka", async () => {
      kafka.kill();
      await delay(faultMilliseconds);
      await kafka.restart();
    });
  }

  #startKafka(kafka: OwnKafka): Job {
    if (kafka.isRunning()) throw new Refusal("Kafka is running.");
    // In the group of the loads: the fault that stops Kafka starts it too.
    return this.#options.jobs.start("load", "Start Kafka", async () => {
      await kafka.restart();
      await this.#options.tick();
      return "Kafka is running, and the relay has published the overdue events.";
    });
  }

  #needOwnPostgres(): void {
    if (!this.#options.ownPostgres) throw new Refusal("Lotus cuts only a Postgres that it started by itself.");
  }

  #underLoad(name: string, fault: (stop: AbortSignal) => Promise<void>): Job {
    const { faultMilliseconds } = this.#options;
    const seconds = (faultMilliseconds * LOAD_DURATION) / 1000;
    return this.#run(name, FAULT_LOAD_PER_SECOND, seconds, async (stop) => {
      await delay(faultMilliseconds * CALM_BEFORE);
      await fault(stop);
    });
  }

  #run(name: string, perSecond: number, seconds: number, meanwhile?: (stop: AbortSignal) => Promise<void>): Job {
    const { jobs, database, url } = this.#options;
    return jobs.start("load", name, async (progress, stop) => {
      progress({ text: "The users of the load register." });
      const result = await this.#load.run({
        url: url() ?? "",
        perSecond,
        seconds,
        ...(meanwhile && { meanwhile }),
        figures: () => database.figures(),
        onPoints: (points) => {
          const answered = points.reduce((sum, point) => sum + point.answered, 0);
          progress({ points, text: `${answered} payments answered. Outbox ${points.at(-1)?.outboxDepth ?? 0}.` });
        },
        stop,
      });
      return proof(result);
    });
  }

  #poison(): Job {
    const { jobs, publish } = this.#options;
    return jobs.start("poison", "Publish a poison event", async () => {
      const id = randomUUID();
      const attributes = { specversion: "1.0", id, source: "/console", type: "lotus.notification-requested.v1" };
      await publish("notification-requested", attributes, JSON.stringify({ kind: "poison" }));
      return `The event ${id} is published. Its data does not fit its type, so it becomes a dead letter; the events behind it pass.`;
    });
  }

  #scenario(): Job {
    const { jobs, url } = this.#options;
    return jobs.start("scenario", "Run the scenario", async () => {
      const { code, stdout, stderr } = await attempt(process.execPath, [
        PROGRAM,
        "scenario",
        "--json",
        "--url",
        url() ?? "",
      ]);
      const text = stdout.slice(Math.max(0, stdout.indexOf("{")));
      if (!text.startsWith("{")) throw new Refusal(stderr.trim() || `the scenario ended with exit code ${code}`);
      const { requests, assertions, failed } = JSON.parse(text) as Record<string, number>;
      return `${requests} requests, ${assertions} assertions, ${failed} failed.`;
    });
  }
}
