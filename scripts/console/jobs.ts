/** Jobs of the console: faults, loads and verifications. One of a kind runs at a time, and its progress goes to every page. */
import { messageOf, Refusal } from "../cli/errors.ts";
import type { Job } from "./protocol.ts";
import { nowMicroseconds } from "./recorder.ts";

const JOBS_MAX = 20;

/** Changes the progress of a job. */
export type Progress = (change: Partial<Pick<Job, "text" | "done" | "of" | "points">>) => void;

/** Runs jobs. */
export class Jobs {
  readonly #show: (job: Job) => void;
  readonly #running = new Map<string, Promise<void>>();
  readonly #stop = new AbortController();
  readonly #jobs = new Map<number, Job>();
  #last = 0;

  constructor(show: (job: Job) => void) {
    this.#show = show;
  }

  /**
   * Starts a job.
   * @param work reports its progress and returns the sentence of the result; it ends early when the signal is aborted
   * @throws {Refusal} while a job of the same group runs
   */
  start(group: string, name: string, work: (progress: Progress, stop: AbortSignal) => Promise<string>): Job {
    if (this.#running.has(group)) throw new Refusal("Another job of this kind is running. Wait for its end.");
    let job: Job = { id: ++this.#last, name, state: "running", began: nowMicroseconds(), text: "It has begun." };
    const change = (next: Partial<Job>) => {
      job = { ...job, ...next };
      this.#jobs.set(job.id, job);
      if (this.#jobs.size > JOBS_MAX) this.#jobs.delete(this.#jobs.keys().next().value ?? 0);
      this.#show(job);
    };
    change({});
    const running = work(change, this.#stop.signal)
      .then(
        (text) => change({ state: "done", text }),
        (error: unknown) =>
          change({
            state: "failed",
            text: error instanceof Refusal ? error.message : `The job failed: ${messageOf(error)}`,
          }),
      )
      .finally(() => this.#running.delete(group));
    this.#running.set(group, running);
    return job;
  }

  /** Returns the last jobs, the oldest first. */
  list(): Job[] {
    return [...this.#jobs.values()];
  }

  /** Ends every job and waits for it. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#running.values());
  }
}
