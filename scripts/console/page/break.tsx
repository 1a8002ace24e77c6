/** The faults and the load with their results: payments answered, outbox depth, recovery time, trial balance. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Job } from "../protocol.ts";
import { post } from "./api.ts";
import { clock } from "./format.ts";
import { JobLine } from "./ledger.tsx";
import { Action, announce } from "./parts.tsx";
import { href } from "./route.ts";
import { jobs, kafkaOrigin, ownPostgres, processes } from "./store.ts";

interface Fault {
  readonly name: string;
  readonly title: string;
  readonly effect: string;
  readonly undo: string;
  /** Whether the fault has a function as its target. */
  readonly aimed?: boolean;
  /** The reason why this run cannot have the fault. */
  disabled?(): string;
}

const NEEDS_KAFKA = { none: "needs --kafka", given: "Lotus did not start these brokers", started: "" } as const;
const needsOwnKafka = () => NEEDS_KAFKA[kafkaOrigin.value];
const isKafkaRunning = () => processes.value.some(({ kind, state }) => kind === "kafka" && state === "running");
const needsOwnPostgres = () => (ownPostgres.value ? "" : "needs the Postgres that Lotus starts");

const FAULTS: readonly Fault[] = [
  {
    name: "kill",
    title: "Kill a function",
    aimed: true,
    effect: "SIGKILL three times in 5 s, as a crash or a lost node would.",
    undo: "The function starts again at its next request.",
  },
  {
    name: "freeze",
    title: "Freeze a function",
    aimed: true,
    effect: "SIGSTOP for 5 s: the process exists and does not answer.",
    undo: "SIGCONT after 5 s. Requests that waited are answered.",
  },
  {
    name: "cut-database",
    title: "Cut the database",
    effect: "Every connection of every function is ended repeatedly for 5 s.",
    undo: "The functions connect again.",
    disabled: needsOwnPostgres,
  },
  {
    name: "kill-database",
    title: "Kill Postgres",
    effect: "SIGKILL for Postgres itself. It recovers from its log.",
    undo: "Lotus starts Postgres again after half a second.",
    disabled: needsOwnPostgres,
  },
  {
    name: "stop-kafka",
    title: "Stop Kafka",
    effect: "The brokers are killed for 5 s. No request waits for them; the outbox fills.",
    undo: "The brokers start again, and the relay publishes the outbox.",
    disabled: () => needsOwnKafka() || (isKafkaRunning() ? "" : "Kafka is stopped"),
  },
  {
    name: "start-kafka",
    title: "Start Kafka",
    effect: "Starts brokers that have ended, for example after npx lotus kill kafka.",
    undo: "The relay publishes the outbox.",
    disabled: () => needsOwnKafka() || (isKafkaRunning() ? "Kafka is running" : ""),
  },
];

function Chart({ job }: { job: Job }) {
  const element = useRef<HTMLDivElement>(null);
  const points = job.points ?? [];
  const theme = document.documentElement.dataset.theme;
  useEffect(() => {
    let remove: (() => void) | undefined;
    let isOver = false;
    void import("./chart.ts").then(({ drawChart }) => {
      if (!isOver && element.current !== null) remove = drawChart(element.current, points);
    });
    return () => {
      isOver = true;
      remove?.();
    };
  }, [job.id, points.length, theme]);
  return (
    <figure class="card">
      <figcaption>
        {job.name}, begun at {clock(job.began)}: <span class="key good">answered</span>{" "}
        <span class="key bad">failed or repeated</span> <span class="key busy">outbox depth</span>, for each second
      </figcaption>
      <div ref={element} class="chart" aria-hidden="true" />
      <details>
        <summary>The figures as a table</summary>
        <div class="wide plain" tabIndex={0} role="group" aria-label="Figures of the load, scrollable">
          <table>
            <thead>
              <tr>
                <th scope="col">Second</th>
                <th scope="col">Answered</th>
                <th scope="col">Failed or repeated</th>
                <th scope="col">Outbox</th>
              </tr>
            </thead>
            <tbody>
              {points.map((point) => (
                <tr key={point.second}>
                  <th scope="row">{point.second}</th>
                  <td>{point.answered}</td>
                  <td>{point.failed}</td>
                  <td>{point.outboxDepth}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}

const isRunning = ({ state }: Job) => state === "running";

/** Shows the faults. A job in progress stands above the buttons, where the person who started it looks. A wide page shows its chart beside them. */
export function Break() {
  const target = useSignal("order-pay");
  const rate = useSignal("50");
  const seconds = useSignal("10");
  const running = jobs.value.find(({ state, points }) => state === "running" && points !== undefined);
  const chart = running ?? jobs.value.find(({ points }) => points !== undefined);
  const isBusy = jobs.value.some(({ state, name }) => state === "running" && name !== "Verify the ledger");
  const results = jobs.value.filter((job) => !isRunning(job));
  const functions = processes.value.filter(({ kind }) => kind === "function");
  const start = async (path: string) => {
    announce("The job has begun.");
    await post<Job>(path);
  };
  const busy = isBusy ? "another job is running" : "";
  return (
    <>
      <h1>Break it</h1>
      <p>
        Each fault runs under 20 payments a second. Every payment has an <code>Idempotency-Key</code> and is repeated
        until it is answered. The result states how many payments were answered, when the outbox was empty again, and
        that no cent is missing.
      </p>
      {jobs.value.filter(isRunning).map((job) => (
        <JobLine key={job.id} job={job} />
      ))}
      <div class="break">
        <div class="cards">
          {FAULTS.map(({ name, title, effect, undo, aimed, disabled }) => (
            <section key={name} class="card">
              <h2>{title}</h2>
              <p>{effect}</p>
              <p>
                <small>{undo}</small>
              </p>
              {aimed && (
                <p>
                  <label>
                    Function{" "}
                    <select value={target.value} onChange={(event) => (target.value = event.currentTarget.value)}>
                      {functions.map((fn) => (
                        <option key={fn.name}>{fn.name}</option>
                      ))}
                    </select>
                  </label>
                </p>
              )}
              <Action
                work={() => start(`faults/${name}?target=${aimed ? target.value : ""}`)}
                disabled={disabled?.() || busy}
              >
                {title}
              </Action>
            </section>
          ))}
          <section class="card">
            <h2>Poison event</h2>
            <p>A foreign producer publishes an event whose data does not fit its type.</p>
            <p>
              <small>
                The event becomes a <a href={href("events", "", { tab: "dead-letters" })}>dead letter</a>.
              </small>
            </p>
            <Action work={() => start("faults/poison")}>Publish a poison event</Action>
          </section>
          <section class="card">
            <h2>Scenario</h2>
            <p>Plays the Postman collection with a new user: 14 requests, 22 assertions.</p>
            <Action work={() => start("faults/scenario")} disabled={busy}>
              Run the scenario
            </Action>
          </section>
          <section class="card">
            <h2>Load</h2>
            <p class="actions">
              <label>
                Payments/s{" "}
                <input
                  type="number"
                  min="1"
                  max="500"
                  value={rate.value}
                  onInput={(event) => (rate.value = event.currentTarget.value)}
                />
              </label>
              <label>
                Seconds{" "}
                <input
                  type="number"
                  min="1"
                  max="120"
                  value={seconds.value}
                  onInput={(event) => (seconds.value = event.currentTarget.value)}
                />
              </label>
            </p>
            <Action work={() => start(`load?rate=${rate.value}&seconds=${seconds.value}`)} disabled={busy}>
              Run the load
            </Action>
          </section>
        </div>
        <section class="results" aria-label="Results">
          {chart && <Chart job={chart} />}
          <h2>Results</h2>
          {results.length === 0 && <p class="empty">Runs appear here after their end.</p>}
          {results.map((job) => (
            <JobLine key={job.id} job={job} />
          ))}
        </section>
      </div>
    </>
  );
}
