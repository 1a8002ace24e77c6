/** The log lines with their filters. A click on a trace opens its event. */
import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { Fragment as _Fragment, jsx as _jsx, jsxs as _jsxs } from "preact/jsx-runtime";
import { get } from "./api.ts";
import { clock, count, short } from "./format.ts";
import { Problem, sentenceOf, WindowTable } from "./parts.tsx";
import { open, route, setQuery } from "./route.ts";
import { lines, linesVersion, processes } from "./store.ts";

const LEVELS = ["", "info", "warning", "error", "news", "text"];
function download(rows) {
  const text = [...rows].reverse().map(({ time, name, text: line }) => JSON.stringify({ time, name, line }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${text.join("\n")}\n`], { type: "application/x-ndjson" }));
  link.download = "lotus-logs.ndjson";
  link.click();
  URL.revokeObjectURL(link.href);
}
/** Shows the log lines. */
export function Logs() {
  const { query } = route.value;
  const [fn, level, trace, text] = ["function", "level", "trace", "filter"].map((name) => query.get(name) ?? "");
  const paused = useSignal(false);
  const problem = useSignal("");
  const version = linesVersion.value;
  const rows = useMemo(() => {
    const found = [];
    for (let i = lines.length - 1; i >= 0; i--) {
      const line = lines[i];
      if (fn && line.name !== fn) continue;
      if (level && line.level !== level) continue;
      if (trace && !line.trace.startsWith(trace)) continue;
      if (text && !line.text.includes(text)) continue;
      found.push(line);
    }
    return found;
  }, [version, fn, level, trace, text]);
  const openTrace = async (id) => {
    try {
      const { event } = await get(`traces/${id}`);
      problem.value = "";
      if (event === null) setQuery({ trace: id });
      else open("events", event);
    } catch (error) {
      problem.value = sentenceOf(error);
    }
  };
  return _jsxs(_Fragment, {
    children: [
      _jsx("h1", { children: "Logs" }),
      _jsxs("div", {
        class: "toolbar",
        children: [
          _jsxs("label", {
            children: [
              _jsx("span", { children: "Function" }),
              _jsxs("select", {
                value: fn,
                onChange: (event) => setQuery({ function: event.currentTarget.value }),
                children: [
                  _jsx("option", { value: "", children: "all" }),
                  processes.value.map(({ name }) => _jsx("option", { children: name }, name)),
                ],
              }),
            ],
          }),
          _jsxs("label", {
            children: [
              _jsx("span", { children: "Level" }),
              _jsx("select", {
                value: level,
                onChange: (event) => setQuery({ level: event.currentTarget.value }),
                children: LEVELS.map((name) => _jsx("option", { value: name, children: name || "all" }, name)),
              }),
            ],
          }),
          _jsxs("label", {
            children: [
              _jsx("span", { children: "Trace" }),
              _jsx("input", {
                type: "search",
                value: trace,
                onInput: (event) => setQuery({ trace: event.currentTarget.value.trim() }),
              }),
            ],
          }),
          _jsxs("label", {
            children: [
              _jsx("span", { children: "Text" }),
              _jsx("input", {
                type: "search",
                class: "filter",
                value: text,
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
          _jsx("button", { type: "button", onClick: () => download(rows), children: "Download" }),
          _jsxs("span", { class: "total", children: [count(rows.length), " lines"] }),
        ],
      }),
      _jsx(Problem, { text: problem.value }),
      _jsx(WindowTable, {
        rows: rows,
        keyOf: (row) => String(row.id),
        label: "Log lines",
        paused: paused.value,
        empty: "No line matches these filters.",
        columns: [
          { title: "Time", class: "time", cell: (row) => clock(Date.parse(row.time) * 1000) },
          { title: "Function", class: "name", cell: (row) => row.name },
          {
            title: "Level",
            class: "level optional",
            cell: (row) => _jsx("span", { class: `level-${row.level}`, children: row.level }),
          },
          { title: "Message", class: "grow", cell: (row) => _jsx("span", { title: row.text, children: row.message }) },
          {
            title: "Trace",
            class: "id",
            cell: (row) =>
              row.trace &&
              _jsx("button", {
                type: "button",
                class: "link",
                onClick: () => void openTrace(row.trace),
                children: short(row.trace),
              }),
          },
        ],
      }),
    ],
  });
}
