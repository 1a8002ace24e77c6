/** The overview: the functions with their figures, the diagram, and the button that makes a payment. */
import { effect } from "@preact/signals";
import { Fragment as _Fragment, jsx as _jsx, jsxs as _jsxs } from "preact/jsx-runtime";
import { makePayment, post } from "./api.ts";
import { Diagram } from "./diagram.tsx";
import { count } from "./format.ts";
import { Action, announce, Sparkline, Status } from "./parts.tsx";
import { href, open } from "./route.ts";
import { events, eventsVersion, figures, processes, requestsPerSecond } from "./store.ts";

const EVENT_MILLISECONDS_MAX = 10000;
/** Resolves to the event of a trace when the stream has brought it. */
function eventOf(trace) {
  return new Promise((resolve) => {
    const late = setTimeout(() => end(undefined), EVENT_MILLISECONDS_MAX);
    let stop;
    const end = (id) => {
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
async function payAndShow() {
  announce("The demo user pays.");
  const id = await eventOf(await makePayment());
  open("events", id ?? "");
}
const milliseconds = (value) => (value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
function Functions() {
  return _jsx("div", {
    class: "wide",
    tabIndex: 0,
    role: "group",
    "aria-label": "Functions, scrollable",
    children: _jsxs("table", {
      children: [
        _jsx("caption", { children: "Processes of this run" }),
        _jsx("thead", {
          children: _jsxs("tr", {
            children: [
              _jsx("th", { scope: "col", children: "Name" }),
              _jsx("th", { scope: "col", children: "State" }),
              _jsx("th", { scope: "col", children: "Cold start" }),
              _jsx("th", { scope: "col", children: "Requests/s" }),
              _jsx("th", { scope: "col", children: "Last minute" }),
              _jsx("th", { scope: "col", children: "p50" }),
              _jsx("th", { scope: "col", children: "p99" }),
              _jsx("th", { scope: "col", children: "Errors" }),
              _jsx("th", { scope: "col", children: "Stop" }),
            ],
          }),
        }),
        _jsx("tbody", {
          children: processes.value.map(({ name, kind, state, startMilliseconds, starts }) => {
            const own = figures.value.get(name);
            const rate = own === undefined ? 0 : own.perSecond.slice(-11, -1).reduce((a, b) => a + b, 0) / 10;
            return _jsxs(
              "tr",
              {
                children: [
                  _jsx("th", {
                    scope: "row",
                    children: _jsx("a", { href: href("logs", "", { function: name }), children: name }),
                  }),
                  _jsx("td", { children: _jsx(Status, { word: state }) }),
                  _jsxs("td", {
                    children: [
                      startMilliseconds === undefined ? "–" : `${Math.round(startMilliseconds)} ms`,
                      (starts ?? 0) > 1 && _jsxs("small", { children: [" \u00D7", starts] }),
                    ],
                  }),
                  _jsx("td", { children: rate === 0 ? "0" : rate.toFixed(1) }),
                  _jsx("td", { children: own && _jsx(Sparkline, { values: own.perSecond }) }),
                  _jsx("td", { children: milliseconds(own?.p50Milliseconds) }),
                  _jsx("td", { children: milliseconds(own?.p99Milliseconds) }),
                  _jsx("td", { children: own?.errors ? _jsx("strong", { class: "bad", children: own.errors }) : "0" }),
                  _jsx("td", {
                    children:
                      kind === "function" &&
                      state !== "zero" &&
                      _jsx(Action, {
                        kind: "quiet",
                        label: `Stop ${name}`,
                        work: () => post(`processes/${name}/stop`),
                        children: "Stop",
                      }),
                  }),
                ],
              },
              name,
            );
          }),
        }),
      ],
    }),
  });
}
/** Shows the overview. */
export function Overview() {
  const all = [...figures.value.values()];
  const p99 = all.length === 0 ? undefined : Math.max(...all.map(({ p99Milliseconds }) => p99Milliseconds));
  const running = processes.value.filter(({ kind, state }) => kind === "function" && state !== "zero").length;
  return _jsxs(_Fragment, {
    children: [
      _jsxs("section", {
        class: "hero",
        children: [
          _jsxs("div", {
            children: [
              _jsx("h1", { children: "Lotus on this machine" }),
              _jsx("p", {
                children:
                  "A payment changes the ledger and writes an event in one transaction. The event travels to a trigger, which stores the notification. Every function is a process of its own and starts at its first request.",
              }),
              _jsx(Action, { kind: "primary", work: payAndShow, children: "Make a payment" }),
            ],
          }),
          _jsxs("dl", {
            class: "figures",
            children: [
              _jsxs("div", {
                children: [
                  _jsx("dt", { children: "Requests/s" }),
                  _jsx("dd", { children: requestsPerSecond.value.toFixed(1) }),
                ],
              }),
              _jsxs("div", {
                children: [_jsx("dt", { children: "Slowest p99" }), _jsx("dd", { children: milliseconds(p99) })],
              }),
              _jsxs("div", {
                children: [_jsx("dt", { children: "Warm functions" }), _jsx("dd", { children: running })],
              }),
              _jsxs("div", {
                children: [
                  _jsx("dt", { children: "Events" }),
                  _jsxs("dd", { children: [void eventsVersion.value, count(events.size)] }),
                ],
              }),
            ],
          }),
        ],
      }),
      _jsx("h2", { children: "How events flow" }),
      _jsx(Diagram, {}),
      _jsx("h2", { children: "Functions" }),
      _jsx(Functions, {}),
    ],
  });
}
