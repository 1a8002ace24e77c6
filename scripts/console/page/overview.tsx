/** The overview: the functions with their figures, the diagram, and the button that makes a payment. */
import { effect } from "@preact/signals";
import { makePayment, post } from "./api.ts";
import { Diagram } from "./diagram.tsx";
import { count, duration } from "./format.ts";
import { Action, announce, Sparkline, Status } from "./parts.tsx";
import { href, open } from "./route.ts";
import { events, eventsVersion, figures, processes, requestsPerSecond } from "./store.ts";

const EVENT_MILLISECONDS_MAX = 10_000;

/** Resolves to the event of a trace when the stream has brought it. */
function eventOf(trace: string): Promise<string | undefined> {
  return new Promise((resolve) => {
    const late = setTimeout(() => end(undefined), EVENT_MILLISECONDS_MAX);
    let stop: (() => void) | undefined;
    const end = (id: string | undefined) => {
      clearTimeout(late);
      queueMicrotask(() => stop?.());
      resolve(id);
    };
    stop = effect(() => {
      void eventsVersion.value;
      for (const event of events.values()) if (event.trace === trace) return end(event.id);
    });
  });
}

async function payAndShow(): Promise<void> {
  announce("The demo user pays.");
  const id = await eventOf(await makePayment());
  open("events", id ?? "");
}

const milliseconds = (value: number | undefined) => (value === undefined ? "–" : duration(value * 1000));

function Functions() {
  return (
    <div class="wide" tabIndex={0} role="group" aria-label="Functions, scrollable">
      <table>
        <caption>Processes of this run</caption>
        <thead>
          <tr>
            <th scope="col">Name</th>
            <th scope="col">State</th>
            <th scope="col">Cold start</th>
            <th scope="col">Requests/s</th>
            <th scope="col">Last minute</th>
            <th scope="col">p50</th>
            <th scope="col">p99</th>
            <th scope="col">Errors</th>
            <th scope="col">Stop</th>
          </tr>
        </thead>
        <tbody>
          {processes.value.map(({ name, kind, state, startMilliseconds, starts }) => {
            const own = figures.value.get(name);
            const rate = own === undefined ? 0 : own.perSecond.slice(-11, -1).reduce((a, b) => a + b, 0) / 10;
            return (
              <tr key={name}>
                <th scope="row">
                  <a href={href("logs", "", { function: name })}>{name}</a>
                </th>
                <td>
                  <Status word={state} />
                </td>
                <td>
                  {startMilliseconds === undefined ? "–" : `${Math.round(startMilliseconds)} ms`}
                  {(starts ?? 0) > 1 && <small> ×{starts}</small>}
                </td>
                <td>{rate === 0 ? "0" : rate.toFixed(1)}</td>
                <td>{own && <Sparkline values={own.perSecond} />}</td>
                <td>{milliseconds(own?.p50Milliseconds)}</td>
                <td>{milliseconds(own?.p99Milliseconds)}</td>
                <td>{own?.errors ? <strong class="bad">{own.errors}</strong> : "0"}</td>
                <td>
                  {kind === "function" && state !== "zero" && (
                    <Action kind="quiet" label={`Stop ${name}`} work={() => post(`processes/${name}/stop`)}>
                      Stop
                    </Action>
                  )}
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

/** Shows the overview. */
export function Overview() {
  const all = [...figures.value.values()];
  const p99 = all.length === 0 ? undefined : Math.max(...all.map(({ p99Milliseconds }) => p99Milliseconds));
  const running = processes.value.filter(({ kind, state }) => kind === "function" && state !== "zero").length;
  return (
    <>
      <section class="hero">
        <div>
          <h1>Lotus on this machine</h1>
          <p>
            A payment changes the ledger and writes an event in one transaction. The event travels to a trigger, which
            stores the notification. Every function is a separate process and starts at its first request.
          </p>
          <Action kind="primary" work={payAndShow}>
            Make a payment
          </Action>
        </div>
        <dl class="figures">
          <div>
            <dt>Requests/s</dt>
            <dd>{requestsPerSecond.value.toFixed(1)}</dd>
          </div>
          <div>
            <dt>Slowest p99</dt>
            <dd>{milliseconds(p99)}</dd>
          </div>
          <div>
            <dt>Warm functions</dt>
            <dd>{running}</dd>
          </div>
          <div>
            <dt>Events</dt>
            <dd>
              {void eventsVersion.value}
              {count(events.size)}
            </dd>
          </div>
        </dl>
      </section>
      <h2>How events flow</h2>
      <Diagram />
      <h2>Functions</h2>
      <Functions />
    </>
  );
}
