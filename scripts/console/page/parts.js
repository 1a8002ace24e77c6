/** Small parts of every page: status, copy button, errors, sparkline, list with a window. */
import { signal, useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Fragment as _Fragment, jsx as _jsx, jsxs as _jsxs } from "preact/jsx-runtime";
import { Failure } from "./api.ts";
import { count } from "./format.ts";

const COPIED_MILLISECONDS = 1500;
/** Rows above and below the visible part of a list. */
const OVERSCAN_ROWS = 8;
/** The sentence for screen readers. */
export const announcement = signal("");
const ANNOUNCE_MILLISECONDS = 5000;
let announcedAt = 0;
/** Says a sentence to screen readers, at most one each five seconds. */
export function announce(text) {
  const now = performance.now();
  if (now - announcedAt < ANNOUNCE_MILLISECONDS) return;
  announcedAt = now;
  announcement.value = text;
}
/** Returns the sentence of an error. An error of the program stays visible in the browser's console. */
export function sentenceOf(error) {
  if (error instanceof Failure) return error.message;
  console.error(error);
  return `The page failed: ${String(error)}`;
}
const WORDS = {
  settled: "good",
  running: "good",
  live: "good",
  done: "good",
  starting: "busy",
  delivering: "busy",
  published: "busy",
  reconnecting: "warn",
  "in the outbox": "warn",
  outdated: "warn",
  frozen: "warn",
  "dead letter": "bad",
  failed: "bad",
  lost: "bad",
};
/** A word with a mark. The mark has a shape of its own, so that the colour says nothing alone. */
export function Status({ word }) {
  const kind = WORDS[word] ?? "idle";
  return _jsxs("span", {
    class: `status ${kind}`,
    children: [
      _jsxs("svg", {
        "aria-hidden": "true",
        viewBox: "0 0 10 10",
        class: "mark",
        children: [
          kind === "good" && _jsx("circle", { cx: "5", cy: "5", r: "4" }),
          kind === "busy" && _jsx("path", { d: "M5 1 L9 5 L5 9 L1 5 Z" }),
          kind === "warn" && _jsx("path", { d: "M5 1 L9.5 9 L.5 9 Z" }),
          kind === "bad" && _jsx("path", { d: "M1 1 h8 v8 h-8 Z" }),
          kind === "idle" && _jsx("circle", { cx: "5", cy: "5", r: "3", class: "hollow" }),
        ],
      }),
      word,
    ],
  });
}
/** Copies a text. */
export function Copy({ text, label }) {
  const copied = useSignal(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    copied.value = true;
    setTimeout(() => {
      copied.value = false;
    }, COPIED_MILLISECONDS);
  };
  return _jsx("button", {
    type: "button",
    class: "quiet",
    onClick: () => void copy(),
    children: copied.value ? "Copied" : label,
  });
}
/** A failure as a sentence. */
export function Problem({ text }) {
  return text === "" ? null : _jsx("p", { class: "problem", role: "alert", children: text });
}
/** A button whose work may take a while and may fail. */
export function Action({ children, work, disabled = "", kind = "", label }) {
  const busy = useSignal(false);
  const problem = useSignal("");
  const click = async () => {
    busy.value = true;
    problem.value = "";
    try {
      await work();
    } catch (error) {
      problem.value = sentenceOf(error);
    } finally {
      busy.value = false;
    }
  };
  return _jsxs(_Fragment, {
    children: [
      _jsxs("button", {
        type: "button",
        class: kind,
        "aria-label": label,
        disabled: busy.value || disabled !== "",
        title: disabled || undefined,
        onClick: () => void click(),
        children: [busy.value ? "…" : children, disabled !== "" && _jsxs("small", { children: [" (", disabled, ")"] })],
      }),
      _jsx(Problem, { text: problem.value }),
    ],
  });
}
/** A line of figures as a small picture. The figure stands beside it as text. */
export function Sparkline({ values }) {
  const most = Math.max(1, ...values);
  const points = values.map((value, index) => `${index},${(14 - (value / most) * 12).toFixed(1)}`).join(" ");
  return _jsx("svg", {
    class: "sparkline",
    viewBox: `0 0 ${Math.max(1, values.length - 1)} 15`,
    preserveAspectRatio: "none",
    "aria-hidden": "true",
    children: _jsx("polyline", { points: points }),
  });
}
/** Reads data again whenever `key` changes. */
export function useData(read, key) {
  const [state, setState] = useState({ data: undefined, problem: "" });
  const latest = useRef(0);
  useEffect(() => {
    const number = ++latest.current;
    const set = (next) => {
      if (number === latest.current) setState(({ data }) => next(data));
    };
    read().then(
      (data) => set(() => ({ data, problem: "" })),
      // The old data stays: a failed query is not an empty list.
      (error) => set((data) => ({ data, problem: sentenceOf(error) })),
    );
  }, [key]);
  return state;
}
/**
 * A table that has only its visible rows in the document. It follows new rows at its top while the pointer is elsewhere; otherwise a
 * button counts them. `rows` begins with the newest.
 */
export function WindowTable({ rows, keyOf, columns, label, rowHeight = 34, paused, selected, empty }) {
  const scroller = useRef(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  const [hovered, setHovered] = useState(false);
  /** The newest row that is shown; undefined while the list follows. */
  const [anchor, setAnchor] = useState(undefined);
  const holds = paused || hovered || top > 0;
  const first = rows[0] === undefined ? undefined : keyOf(rows[0]);
  useEffect(() => {
    if (!holds) setAnchor(undefined);
    else if (anchor === undefined) setAnchor(first ?? "");
  }, [holds]);
  useLayoutEffect(() => {
    const element = scroller.current;
    if (element === null) return;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const anchored = anchor === undefined || anchor === "" ? 0 : rows.findIndex((row) => keyOf(row) === anchor);
  const news = holds ? Math.max(0, anchored) : 0;
  const shown = news === 0 ? rows : rows.slice(news);
  const from = Math.max(0, Math.floor(top / rowHeight) - OVERSCAN_ROWS);
  const to = Math.min(shown.length, Math.ceil((top + height) / rowHeight) + OVERSCAN_ROWS);
  const showNew = () => {
    setAnchor(first);
    if (scroller.current) scroller.current.scrollTop = 0;
  };
  const size = (pixels) => ({ height: `${pixels}px` });
  return _jsxs("div", {
    class: "window",
    children: [
      news > 0 && _jsxs("button", { type: "button", class: "news", onClick: showNew, children: [count(news), " new"] }),
      _jsxs("div", {
        ref: scroller,
        class: "scroller",
        tabIndex: 0,
        role: "group",
        "aria-label": `${label}, scrollable`,
        onScroll: (event) => setTop(event.currentTarget.scrollTop),
        children: [
          _jsxs("div", {
            role: "table",
            "aria-label": label,
            "aria-rowcount": shown.length + 1,
            class: "rows",
            children: [
              _jsx("div", {
                role: "row",
                class: "row head",
                "aria-rowindex": 1,
                tabIndex: -1,
                children: columns.map((column) =>
                  _jsx(
                    "div",
                    { role: "columnheader", class: column.class, tabIndex: -1, children: column.title },
                    column.title,
                  ),
                ),
              }),
              _jsxs("div", {
                role: "rowgroup",
                onMouseEnter: () => setHovered(true),
                onMouseLeave: () => setHovered(false),
                children: [
                  _jsx("div", { role: "presentation", style: size(from * rowHeight) }),
                  shown.slice(from, to).map((row, index) =>
                    _jsx(
                      "div",
                      {
                        role: "row",
                        tabIndex: -1,
                        class: `row${keyOf(row) === selected ? " selected" : ""}`,
                        "aria-rowindex": from + index + 2,
                        style: size(rowHeight),
                        children: columns.map((column) =>
                          _jsx("div", { role: "cell", class: column.class, children: column.cell(row) }, column.title),
                        ),
                      },
                      keyOf(row),
                    ),
                  ),
                  _jsx("div", { role: "presentation", style: size(Math.max(0, (shown.length - to) * rowHeight)) }),
                ],
              }),
            ],
          }),
          shown.length === 0 && _jsx("p", { class: "empty", children: empty }),
        ],
      }),
    ],
  });
}
