/** The events: the list, one event with its waterfall, the outbox and the dead letters. */
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import type { DeadLetterRow, EventDetail, EventSummary, OutboxRow } from "../protocol.ts";
import { get, post } from "./api.ts";
import { age, bytes, clock, count, duration, pretty, short, tail } from "./format.ts";
import { Action, announce, Copy, FilterBox, PauseButton, Problem, Status, useData, WindowTable } from "./parts.tsx";
import { href, open, route } from "./route.ts";
import { databaseFigures, events, eventsVersion, spanTarget } from "./store.ts";
import { TraceList } from "./traces.tsx";
import { Waterfall } from "./waterfall.tsx";

const matches = (event: EventSummary, words: readonly string[]) => {
  const text = `${event.id} ${event.type} ${event.source} ${event.subject} ${event.state} ${event.trace}`;
  return words.every((word) => text.includes(word));
};

function Detail({ id }: { id: string }) {
  void eventsVersion.value;
  const known = events.get(id);
  // A change of the event, and nothing else, reads it again.
  const { data, problem } = useData(
    () => get<EventDetail>(`events/${encodeURIComponent(id)}`),
    `${id} ${known?.state} ${known?.attempts} ${known?.microseconds}`,
  );
  const formatted = useSignal(true);
  const close = <a href={href("events", "", Object.fromEntries(route.value.query))}>Close</a>;
  if (data === undefined)
    return (
      <article class="detail" aria-label={`Event ${id}`}>
        {problem === "" ? <p class="empty">Loading …</p> : <Problem text={problem} />}
        <p>{close}</p>
      </article>
    );
  const { event, spans, attributes, body, bodyBytes, related, lines } = data;
  const shownBytes = new TextEncoder().encode(body).length;
  return (
    <article class="detail" aria-label={`Event ${id}`}>
      <header>
        <h2>
          {event.topic} <Status word={known?.state ?? event.state} />
        </h2>
        <p class="actions">
          <Copy text={event.id} label="Copy id" />
          <Copy text={location.href} label="Copy link" />
          {close}
        </p>
      </header>
      <Problem text={event.reason ?? ""} />
      <Problem text={problem} />
      {spans.length > 0 && <Waterfall spans={spans} />}
      <p class="links">
        {event.subject !== "" && <a href={href("ledger", event.subject)}>Account of the user</a>}
        {event.trace !== "" && spanTarget.value === "console" && (
          <a href={href("traces", event.trace)}>Trace of the request</a>
        )}
        {event.trace !== "" && <a href={href("logs", "", { trace: event.trace })}>Log lines of the trace</a>}
        {related.map((other) => (
          <a key={other.id} href={href("events", other.id)}>
            {other.topic} …{tail(other.id)}
          </a>
        ))}
      </p>
      <h3>Content</h3>
      <p class="actions">
        <Copy text={body} label="Copy JSON" />
        <button
          type="button"
          class="quiet"
          aria-pressed={formatted.value}
          onClick={() => (formatted.value = !formatted.value)}
        >
          Format
        </button>
        {bodyBytes > shownBytes && (
          <span>
            Shows {bytes(shownBytes)} of {bytes(bodyBytes)}.
          </span>
        )}
      </p>
      <pre tabIndex={0}>{formatted.value ? pretty(body) : body}</pre>
      <h3>Attributes</h3>
      <dl class="attributes">
        {Object.entries(attributes).map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <h3>Log lines</h3>
      {lines.length === 0 ? (
        <p class="empty">The log has no line of this trace any more.</p>
      ) : (
        <pre tabIndex={0}>{lines.map(({ name, text }) => `${name}  ${text}`).join("\n")}</pre>
      )}
    </article>
  );
}

function List({ selected }: { selected: string }) {
  const filter = route.value.query.get("filter") ?? "";
  const paused = useSignal(false);
  const version = eventsVersion.value;
  const rows = useMemo(() => {
    const words = filter.split(/\s+/).filter(Boolean);
    const found: EventSummary[] = [];
    for (const event of events.values()) if (words.length === 0 || matches(event, words)) found.push(event);
    return found.reverse();
  }, [version, filter]);
  const query = Object.fromEntries(route.value.query);
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target instanceof Element && event.target.closest("dialog") !== null) return;
      if (event.key === "Escape" && selected !== "") open("events", "", query);
      const step = event.key === "j" ? 1 : event.key === "k" ? -1 : 0;
      if (step === 0 || localStorage.getItem("lotus-keys") === "off") return;
      const index = rows.findIndex(({ id }) => id === selected);
      const next = rows[Math.min(rows.length - 1, Math.max(0, index + step))];
      if (next !== undefined) open("events", next.id, query);
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, [rows, selected]);
  return (
    <section class="list">
      <div class="toolbar">
        <FilterBox text={filter} placeholder="type, user, state, trace" />
        <PauseButton paused={paused} />
        <span class="total">{count(rows.length)} events</span>
      </div>
      <WindowTable
        rows={rows}
        keyOf={(row) => row.id}
        label="Events"
        paused={paused.value}
        selected={selected}
        empty={
          filter === ""
            ? "The outbox has not published an event yet. Make a payment on the overview."
            : "No event contains these words."
        }
        columns={[
          { title: "Time", class: "time", cell: (row) => <a href={href("events", row.id, query)}>{clock(row.at)}</a> },
          { title: "Topic", class: "grow", cell: (row) => row.topic },
          { title: "From", class: "grow from optional", cell: (row) => row.source },
          { title: "User", class: "id optional", cell: (row) => short(row.subject) },
          { title: "State", class: "state", cell: (row) => <Status word={row.state} /> },
          {
            title: "Total",
            class: "number",
            cell: (row) => (row.microseconds === undefined ? "–" : duration(row.microseconds)),
          },
        ]}
      />
    </section>
  );
}

function Outbox() {
  const figures = databaseFigures.value;
  const { data, problem } = useData(() => get<OutboxRow[]>("outbox"), figures?.outboxDepth ?? -1);
  return (
    <section class="list">
      <p>
        The outbox has <strong>{figures === undefined ? "?" : count(figures.outboxDepth)}</strong> events that are not
        settled.{" "}
        {figures !== undefined && figures.outboxDepth > 0 && (
          <>The oldest is {duration(figures.outboxAgeMilliseconds * 1000)} old. </>
        )}
        The relay publishes an event again after a minute.
      </p>
      <Problem text={problem} />
      {data !== undefined && data.length === 0 && (
        <p class="empty">The outbox is empty: every event has had its effect.</p>
      )}
      {data !== undefined && data.length > 0 && (
        <div class="wide" tabIndex={0} role="group" aria-label="Outbox, scrollable">
          <table>
            <caption>The oldest events in the outbox</caption>
            <thead>
              <tr>
                <th scope="col">Time</th>
                <th scope="col">Age</th>
                <th scope="col">Topic</th>
                <th scope="col">Waits for</th>
                <th scope="col">Publications</th>
              </tr>
            </thead>
            <tbody>
              {data.map(({ id, topic, time, awaiting, attempts }) => (
                <tr key={id}>
                  <th scope="row">
                    <a href={href("events", id)}>{clock(Date.parse(time) * 1000)}</a>
                  </th>
                  <td>{age(Date.parse(time) * 1000)}</td>
                  <td>{topic}</td>
                  <td>{awaiting.join(", ")}</td>
                  <td>{attempts}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}

function DeadLetters() {
  const figures = databaseFigures.value;
  const again = useSignal(0);
  const result = useSignal("");
  const { data, problem } = useData(
    () => get<DeadLetterRow[]>("dead-letters"),
    `${figures?.deadLetters} ${again.value}`,
  );
  const replay = async (which: string, event?: string) => {
    const { count: replayed, failures } = await post<{ count: number; failures: string[] }>(
      `dead-letters/${which}/replay`,
    );
    again.value++;
    result.value = [`${replayed} put back into the outbox and published.`, ...failures].join(" ");
    announce(result.value);
    if (replayed === 1 && event !== undefined) open("events", event);
  };
  return (
    <section class="list">
      <p>
        A dead letter is an event that its subscriber can never handle. A replay puts it back into the outbox; do it
        after the cause is removed.
      </p>
      <p class="actions">
        <Action work={() => replay("all")} disabled={data?.length ? "" : "no dead letters"}>
          Replay all
        </Action>
        <span role="status">{result.value}</span>
      </p>
      <Problem text={problem} />
      {data?.length === 0 && <p class="empty">The list of dead letters is empty.</p>}
      {data?.map((letter) => (
        <details key={letter.id} class="letter">
          <summary>
            <Status word="dead letter" /> <strong>{letter.attributes.type ?? "no type"}</strong> for {letter.subscriber}{" "}
            <small>{clock(Date.parse(letter.movedAt) * 1000)}</small>
            <span class="reason">{letter.reason}</span>
          </summary>
          <p class="actions">
            <Action work={() => replay(letter.id, letter.event)} label={`Replay dead letter ${letter.id}`}>
              Replay
            </Action>
            <Copy text={letter.body} label="Copy content" />
            <a href={href("events", letter.event)}>Event …{tail(letter.event)}</a>
          </p>
          <pre tabIndex={0}>{pretty(letter.body)}</pre>
          <pre tabIndex={0}>{JSON.stringify(letter.attributes, null, 2)}</pre>
        </details>
      ))}
    </section>
  );
}

/** Shows the events. */
export function Events() {
  const { id, query } = route.value;
  const tab = query.get("tab") ?? "";
  const figures = databaseFigures.value;
  const tabs = [
    ["", "Events", undefined],
    ["outbox", "Outbox", figures?.outboxDepth],
    ["dead-letters", "Dead letters", figures?.deadLetters],
    ["traces", "Traces", undefined],
  ] as const;
  return (
    <>
      <h1>Events</h1>
      <nav class="tabs" aria-label="Kinds of events">
        {tabs.map(([name, text, number]) => (
          <a key={name} href={href("events", "", { tab: name })} aria-current={tab === name ? "page" : undefined}>
            {text}
            {number !== undefined && <span class={number > 0 ? "badge warn" : "badge"}>{count(number)}</span>}
          </a>
        ))}
      </nav>
      {tab === "outbox" && <Outbox />}
      {tab === "dead-letters" && <DeadLetters />}
      {tab === "traces" && <TraceList />}
      {tab === "" && (
        <div class={id === "" ? "split" : "split opened"}>
          <List selected={id} />
          {id !== "" && <Detail key={id} id={id} />}
        </div>
      )}
    </>
  );
}
