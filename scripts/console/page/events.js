/** The events: the list, one event with its waterfall, the outbox and the dead letters. */
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { Fragment as _Fragment, jsx as _jsx, jsxs as _jsxs } from "preact/jsx-runtime";
import { get, post } from "./api.ts";
import { age, bytes, clock, count, duration, pretty, short, tail } from "./format.ts";
import { Action, announce, Copy, Problem, Status, useData, WindowTable } from "./parts.tsx";
import { href, open, route, setQuery } from "./route.ts";
import { databaseFigures, events, eventsVersion } from "./store.ts";
import { Waterfall } from "./waterfall.tsx";

const matches = (event, words) => {
  const text = `${event.id} ${event.type} ${event.source} ${event.subject} ${event.state} ${event.trace}`;
  return words.every((word) => text.includes(word));
};
function Detail({ id }) {
  const known = events.get(id);
  // A change of the event, and nothing else, reads it again.
  const { data, problem } = useData(
    () => get(`events/${encodeURIComponent(id)}`),
    `${id} ${known?.state} ${known?.attempts} ${known?.microseconds}`,
  );
  const formatted = useSignal(true);
  if (data === undefined)
    return problem === ""
      ? _jsx("p", { class: "empty", children: "Loading \u2026" })
      : _jsx(Problem, { text: problem });
  const { event, spans, attributes, body, bodyBytes, related, lines } = data;
  const shownBytes = new TextEncoder().encode(body).length;
  return _jsxs("article", {
    class: "detail",
    "aria-label": `Event ${id}`,
    children: [
      _jsxs("header", {
        children: [
          _jsxs("h2", { children: [event.topic, " ", _jsx(Status, { word: known?.state ?? event.state })] }),
          _jsxs("p", {
            class: "actions",
            children: [
              _jsx(Copy, { text: event.id, label: "Copy id" }),
              _jsx(Copy, { text: location.href, label: "Copy link" }),
              _jsx("a", { href: href("events", "", Object.fromEntries(route.value.query)), children: "Close" }),
            ],
          }),
        ],
      }),
      _jsx(Problem, { text: event.reason ?? "" }),
      _jsx(Problem, { text: problem }),
      spans.length > 0 && _jsx(Waterfall, { spans: spans }),
      _jsxs("p", {
        class: "links",
        children: [
          event.subject !== "" && _jsx("a", { href: href("ledger", event.subject), children: "Account of the user" }),
          event.trace !== "" &&
            _jsx("a", { href: href("logs", "", { trace: event.trace }), children: "Log lines of the trace" }),
          related.map((other) =>
            _jsxs(
              "a",
              { href: href("events", other.id), children: [other.topic, " \u2026", tail(other.id)] },
              other.id,
            ),
          ),
        ],
      }),
      _jsx("h3", { children: "Content" }),
      _jsxs("p", {
        class: "actions",
        children: [
          _jsx(Copy, { text: body, label: "Copy JSON" }),
          _jsx("button", {
            type: "button",
            class: "quiet",
            "aria-pressed": formatted.value,
            onClick: () => (formatted.value = !formatted.value),
            children: "Format",
          }),
          bodyBytes > shownBytes &&
            _jsxs("span", { children: ["Shows ", bytes(shownBytes), " of ", bytes(bodyBytes), "."] }),
        ],
      }),
      _jsx("pre", { tabIndex: 0, children: formatted.value ? pretty(body) : body }),
      _jsx("h3", { children: "Attributes" }),
      _jsx("dl", {
        class: "attributes",
        children: Object.entries(attributes).map(([name, value]) =>
          _jsxs("div", { children: [_jsx("dt", { children: name }), _jsx("dd", { children: value })] }, name),
        ),
      }),
      _jsx("h3", { children: "Log lines" }),
      lines.length === 0
        ? _jsx("p", { class: "empty", children: "The log has no line of this trace any more." })
        : _jsx("pre", { tabIndex: 0, children: lines.map(({ name, text }) => `${name}  ${text}`).join("\n") }),
    ],
  });
}
function List({ selected }) {
  const filter = route.value.query.get("filter") ?? "";
  const paused = useSignal(false);
  const version = eventsVersion.value;
  const rows = useMemo(() => {
    const words = filter.split(/\s+/).filter(Boolean);
    const found = [];
    for (const event of events.values()) if (words.length === 0 || matches(event, words)) found.push(event);
    return found.reverse();
  }, [version, filter]);
  const query = Object.fromEntries(route.value.query);
  useEffect(() => {
    const key = (event) => {
      if (event.target instanceof HTMLInputElement || event.ctrlKey || event.metaKey || event.altKey) return;
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
  return _jsxs("section", {
    class: "list",
    children: [
      _jsxs("div", {
        class: "toolbar",
        children: [
          _jsxs("label", {
            children: [
              _jsx("span", { children: "Filter" }),
              _jsx("input", {
                type: "search",
                class: "filter",
                value: filter,
                placeholder: "type, user, state, trace",
                onInput: (event) => setQuery({ filter: event.currentTarget.value }),
              }),
            ],
          }),
          _jsx("button", {
            type: "button",
            "aria-pressed": paused.value,
            onClick: () => (paused.value = !paused.value),
            children: paused.value ? "Continue" : "Pause",
          }),
          _jsxs("span", { class: "total", children: [count(rows.length), " events"] }),
        ],
      }),
      _jsx(WindowTable, {
        rows: rows,
        keyOf: (row) => row.id,
        label: "Events",
        paused: paused.value,
        selected: selected,
        empty:
          filter === "" ? "There is no event yet. Make a payment on the overview." : "No event contains these words.",
        columns: [
          {
            title: "Time",
            class: "time",
            cell: (row) => _jsx("a", { href: href("events", row.id, query), children: clock(row.at) }),
          },
          { title: "Topic", class: "grow", cell: (row) => row.topic },
          { title: "From", class: "grow from optional", cell: (row) => row.source },
          { title: "User", class: "id optional", cell: (row) => short(row.subject) },
          { title: "State", class: "state", cell: (row) => _jsx(Status, { word: row.state }) },
          {
            title: "Total",
            class: "number",
            cell: (row) => (row.microseconds === undefined ? "–" : duration(row.microseconds)),
          },
        ],
      }),
    ],
  });
}
function Outbox() {
  const figures = databaseFigures.value;
  const { data, problem } = useData(() => get("outbox"), figures?.outboxDepth ?? -1);
  return _jsxs("section", {
    class: "list",
    children: [
      _jsxs("p", {
        children: [
          "The outbox has ",
          _jsx("strong", { children: figures === undefined ? "?" : count(figures.outboxDepth) }),
          " events that are not settled. The oldest is ",
          duration((figures?.outboxAgeMilliseconds ?? 0) * 1000),
          " old. The relay publishes an event again after a minute.",
        ],
      }),
      _jsx(Problem, { text: problem }),
      data !== undefined &&
        data.length === 0 &&
        _jsx("p", { class: "empty", children: "The outbox is empty: every event has had its effect." }),
      data !== undefined &&
        data.length > 0 &&
        _jsx("div", {
          class: "wide",
          tabIndex: 0,
          role: "group",
          "aria-label": "Outbox, scrollable",
          children: _jsxs("table", {
            children: [
              _jsx("caption", { children: "The oldest events in the outbox" }),
              _jsx("thead", {
                children: _jsxs("tr", {
                  children: [
                    _jsx("th", { scope: "col", children: "Time" }),
                    _jsx("th", { scope: "col", children: "Age" }),
                    _jsx("th", { scope: "col", children: "Topic" }),
                    _jsx("th", { scope: "col", children: "Waits for" }),
                    _jsx("th", { scope: "col", children: "Publications" }),
                  ],
                }),
              }),
              _jsx("tbody", {
                children: data.map(({ id, topic, time, awaiting, attempts }) =>
                  _jsxs(
                    "tr",
                    {
                      children: [
                        _jsx("th", {
                          scope: "row",
                          children: _jsx("a", { href: href("events", id), children: clock(Date.parse(time) * 1000) }),
                        }),
                        _jsx("td", { children: age(Date.parse(time) * 1000) }),
                        _jsx("td", { children: topic }),
                        _jsx("td", { children: awaiting.join(", ") }),
                        _jsx("td", { children: attempts }),
                      ],
                    },
                    id,
                  ),
                ),
              }),
            ],
          }),
        }),
    ],
  });
}
function DeadLetters() {
  const figures = databaseFigures.value;
  const again = useSignal(0);
  const result = useSignal("");
  const { data, problem } = useData(() => get("dead-letters"), `${figures?.deadLetters} ${again.value}`);
  const replay = async (which, event) => {
    const { count: replayed, failures } = await post(`dead-letters/${which}/replay`);
    again.value++;
    result.value = [`${replayed} put back into the outbox and published.`, ...failures].join(" ");
    announce(result.value);
    if (replayed === 1 && event !== undefined && events.has(event)) open("events", event);
  };
  return _jsxs("section", {
    class: "list",
    children: [
      _jsx("p", {
        children:
          "A dead letter is an event that its subscriber can never handle. A replay puts it back into the outbox; do it after the cause is removed.",
      }),
      _jsxs("p", {
        class: "actions",
        children: [
          _jsx(Action, {
            work: () => replay("all"),
            disabled: data?.length ? "" : "no dead letters",
            children: "Replay all",
          }),
          _jsx("span", { role: "status", children: result.value }),
        ],
      }),
      _jsx(Problem, { text: problem }),
      data?.length === 0 && _jsx("p", { class: "empty", children: "There are no dead letters." }),
      data?.map((letter) =>
        _jsxs(
          "details",
          {
            class: "letter",
            children: [
              _jsxs("summary", {
                children: [
                  _jsx(Status, { word: "dead letter" }),
                  " ",
                  _jsx("strong", { children: letter.attributes.type ?? "no type" }),
                  " for ",
                  letter.subscriber,
                  _jsx("small", { children: clock(Date.parse(letter.movedAt) * 1000) }),
                  _jsx("span", { class: "reason", children: letter.reason }),
                ],
              }),
              _jsxs("p", {
                class: "actions",
                children: [
                  _jsx(Action, {
                    work: () => replay(letter.id, letter.event),
                    label: `Replay dead letter ${letter.id}`,
                    children: "Replay",
                  }),
                  _jsx(Copy, { text: letter.body, label: "Copy content" }),
                  _jsxs("a", { href: href("events", letter.event), children: ["Event \u2026", tail(letter.event)] }),
                ],
              }),
              _jsx("pre", { tabIndex: 0, children: pretty(letter.body) }),
              _jsx("pre", { children: JSON.stringify(letter.attributes, null, 2) }),
            ],
          },
          letter.id,
        ),
      ),
    ],
  });
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
  ];
  return _jsxs(_Fragment, {
    children: [
      _jsx("h1", { children: "Events" }),
      _jsx("nav", {
        class: "tabs",
        "aria-label": "Kinds of events",
        children: tabs.map(([name, text, number]) =>
          _jsxs(
            "a",
            {
              href: href("events", "", { tab: name }),
              "aria-current": tab === name ? "page" : undefined,
              children: [
                text,
                number !== undefined &&
                  _jsx("span", { class: number > 0 ? "badge warn" : "badge", children: count(number) }),
              ],
            },
            name,
          ),
        ),
      }),
      tab === "outbox" && _jsx(Outbox, {}),
      tab === "dead-letters" && _jsx(DeadLetters, {}),
      tab === "" &&
        _jsxs("div", {
          class: id === "" ? "split" : "split opened",
          children: [_jsx(List, { selected: id }), id !== "" && _jsx(Detail, { id: id }, id)],
        }),
    ],
  });
}
