/** The traces of a run with `--otel`: the list, and one trace as a tree from the gateway to the stored effect. */
import type { TraceDetail, TraceStep, TraceSummary } from "../protocol.ts";
import { get } from "./api.ts";
import { clock, count, duration, short, tail } from "./format.ts";
import { Copy, FilterBox, Problem, Status, useData, WindowTable } from "./parts.tsx";
import { href, route } from "./route.ts";
import { spansReceived, spanTarget } from "./store.ts";
import { extentOf, Lane } from "./waterfall.tsx";

const TRACE_ID = /^[0-9a-f]{32}$/;

/** Explains a run whose traces the console does not have. */
function Missing() {
  if (spanTarget.value === "elsewhere")
    return (
      <p class="empty">
        The functions send their spans to another collector. To see them here, start Lotus with{" "}
        <code>npm start -- --otel</code>, without an address.
      </p>
    );
  return (
    <p class="empty">
      The functions export no spans in this run. Start Lotus with <code>npm start -- --otel</code> to see each request
      as one trace: gateway, endpoint, SQL statement, publication, trigger, effect.
    </p>
  );
}

function Attributes({ step }: { step: TraceStep }) {
  const entries = Object.entries(step.attributes);
  if (entries.length === 0 && step.links.length === 0) return <span class="step">{step.name}</span>;
  return (
    <details>
      <summary>
        <span class="step">{step.name}</span>
      </summary>
      <dl class="attributes">
        {entries.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{String(value)}</dd>
          </div>
        ))}
        {step.links.map((trace) => (
          <div key={trace}>
            <dt>linked trace</dt>
            <dd>
              <a href={href("traces", trace)}>{short(trace)}</a>
            </dd>
          </div>
        ))}
      </dl>
    </details>
  );
}

/** Steps below this depth share one padding. */
const DEPTH_SHOWN_MAX = 8;

function Tree({ steps }: { steps: readonly TraceStep[] }) {
  const extent = extentOf(steps);
  const { start, end, whole } = extent;
  return (
    <table class="waterfall tree">
      <caption>
        {count(steps.length)} steps, {duration(whole)} from {clock(start)} to {clock(end)}
      </caption>
      <thead>
        <tr>
          <th scope="col">Step</th>
          <th scope="col" class="lane">
            Time
          </th>
          <th scope="col" class="optional">
            Begins
          </th>
          <th scope="col">Duration</th>
        </tr>
      </thead>
      <tbody>
        {steps.map((step, index) => (
          <tr key={index}>
            <th scope="row">
              <div class={`depth-${Math.min(step.depth, DEPTH_SHOWN_MAX)}`}>
                <span class="hidden">level {step.depth + 1} </span>
                <Attributes step={step} />
                <small>{step.kind === step.name ? step.who : `${step.who}, ${step.kind}`}</small>
              </div>
            </th>
            <Lane kind={step.kind.replace(" ", "-")} step={step} extent={extent} />
            <td class="optional">+{duration(step.at - start)}</td>
            <td>
              {duration(step.microseconds)}
              {step.failed && <strong class="bad"> failed</strong>}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Detail({ id }: { id: string }) {
  const { data, problem } = useData(() => get<TraceDetail>(`traces/${id}`), `${id} ${spansReceived.value}`);
  return (
    <>
      <h1>Trace {short(id)}</h1>
      <p class="links">
        <a href={href("events", "", { tab: "traces" })}>All traces</a>
        <a href={href("logs", "", { trace: id })}>Log lines of the trace</a>
        {data?.events.map((event) => (
          <a key={event.id} href={href("events", event.id)}>
            {event.topic} …{tail(event.id)}
          </a>
        ))}
        <Copy text={id} label="Copy id" />
      </p>
      <Problem text={problem} />
      {data === undefined && problem === "" && <p class="empty">Loading …</p>}
      {data?.steps.length === 0 &&
        (spanTarget.value === "console" ? (
          <p class="empty">No span of this trace is here. It has not arrived yet, or 1 000 newer traces replaced it.</p>
        ) : (
          <Missing />
        ))}
      {data !== undefined && data.steps.length > 0 && (
        <div class="card">
          <Tree steps={data.steps} />
        </div>
      )}
    </>
  );
}

/** Shows one trace: `#/traces/ID`. */
export function Traces() {
  const { id } = route.value;
  if (TRACE_ID.test(id)) return <Detail key={id} id={id} />;
  return (
    <>
      <h1>Trace</h1>
      <Problem text="This address contains no id of a trace: 32 hexadecimal digits." />
      <p class="links">
        <a href={href("events", "", { tab: "traces" })}>All traces</a>
      </p>
    </>
  );
}

/** Shows the last traces. */
export function TraceList() {
  const filter = route.value.query.get("filter") ?? "";
  const { data, problem } = useData(() => get<TraceSummary[]>("traces"), spansReceived.value);
  if (spanTarget.value !== "console") return <Missing />;
  const words = filter.split(/\s+/).filter(Boolean);
  const rows = (data ?? []).filter(({ id, name, who, failed }) => {
    const text = `${id} ${name} ${who} ${failed ? "failed" : ""}`;
    return words.every((word) => text.includes(word));
  });
  return (
    <section class="list">
      <div class="toolbar">
        <FilterBox text={filter} placeholder="call, function, failed" />
        <span class="total">the last {count(rows.length)} traces</span>
      </div>
      <Problem text={problem} />
      <WindowTable
        rows={rows}
        keyOf={(row) => row.id}
        label="Traces"
        paused={false}
        empty={
          data === undefined
            ? "Loading …"
            : filter === ""
              ? "No trace has arrived yet. Make a payment on the overview."
              : "No trace contains these words."
        }
        columns={[
          { title: "Time", class: "time", cell: (row) => <a href={href("traces", row.id)}>{clock(row.at)}</a> },
          {
            title: "First span",
            class: "grow",
            cell: (row) => (
              <>
                {row.failed && <Status word="failed" />} {row.name}
              </>
            ),
          },
          { title: "Function", class: "grow from optional", cell: (row) => row.who },
          { title: "Spans", class: "number optional", cell: (row) => row.spans },
          { title: "Answer", class: "number", cell: (row) => duration(row.microseconds) },
          { title: "Whole", class: "number optional", cell: (row) => duration(row.wholeMicroseconds) },
        ]}
      />
    </section>
  );
}
