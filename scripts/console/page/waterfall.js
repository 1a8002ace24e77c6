import { jsx as _jsx, jsxs as _jsxs } from "preact/jsx-runtime";
import { clock, duration } from "./format.ts";

const WAITS = {
  publish: "waited for the publication",
  deliver: "waited for the delivery",
  effect: "waited for the function",
  request: "waited for the request",
};
/** Returns the steps with the gaps between them. */
function rowsOf(spans) {
  const rows = [];
  let end = spans[0]?.at ?? 0;
  for (const { name, who, at, microseconds, failed, note = "" } of spans) {
    if (at > end) {
      const label = WAITS[name] ?? "waited";
      rows.push({ kind: "gap", label, who: "", at: end, microseconds: at - end, failed: false, note: "" });
    }
    rows.push({ kind: name.replace(" ", "-"), label: name, who, at, microseconds, failed, note });
    end = Math.max(end, at + microseconds);
  }
  return rows;
}
/** Returns the row that took longest without another step inside it. */
function longestOf(rows) {
  const inner = rows.filter(
    (row) =>
      row.microseconds > 0 &&
      !rows.some(
        (other) =>
          other !== row &&
          other.microseconds > row.microseconds / 2 &&
          other.at >= row.at &&
          other.at + other.microseconds <= row.at + row.microseconds,
      ),
  );
  return inner.sort((a, b) => b.microseconds - a.microseconds)[0];
}
/** Draws the steps of an event. */
export function Waterfall({ spans }) {
  const rows = rowsOf(spans);
  const start = Math.min(...spans.map(({ at }) => at));
  const end = Math.max(...spans.map(({ at, microseconds }) => at + microseconds));
  const whole = Math.max(1, end - start);
  const longest = longestOf(rows);
  const share = (microseconds) => `${Math.round((microseconds / whole) * 100)} %`;
  return _jsxs("table", {
    class: "waterfall",
    children: [
      _jsxs("caption", { children: [duration(whole), " from ", clock(start), " to ", clock(end)] }),
      _jsx("thead", {
        children: _jsxs("tr", {
          children: [
            _jsx("th", { scope: "col", children: "Step" }),
            _jsx("th", { scope: "col", class: "lane", children: "Time" }),
            _jsx("th", { scope: "col", children: "Duration" }),
            _jsx("th", { scope: "col", children: "Share" }),
          ],
        }),
      }),
      _jsx("tbody", {
        children: rows.map((row, index) =>
          _jsxs(
            "tr",
            {
              class: row === longest ? "longest" : undefined,
              children: [
                _jsxs("th", {
                  scope: "row",
                  children: [
                    _jsx("span", { class: row.kind === "gap" ? "gap" : "step", children: row.label }),
                    row.who !== "" && _jsx("small", { children: row.who }),
                    row.note !== "" && _jsx("small", { class: row.failed ? "bad" : undefined, children: row.note }),
                  ],
                }),
                _jsx("td", {
                  class: "lane",
                  children: _jsx("svg", {
                    viewBox: "0 0 1000 16",
                    preserveAspectRatio: "none",
                    "aria-hidden": "true",
                    children: _jsx("rect", {
                      class: `bar ${row.failed ? "failed" : row.kind}`,
                      x: ((row.at - start) / whole) * 996,
                      width: Math.max(4, (row.microseconds / whole) * 996),
                      y: "2",
                      height: "12",
                    }),
                  }),
                }),
                _jsxs("td", {
                  children: [
                    row.microseconds === 0 ? `at ${duration(row.at - start)}` : duration(row.microseconds),
                    row === longest && _jsx("strong", { children: " longest" }),
                    row.failed && _jsx("strong", { class: "bad", children: " failed" }),
                  ],
                }),
                _jsx("td", { children: row.microseconds === 0 ? "" : share(row.microseconds) }),
              ],
            },
            index,
          ),
        ),
      }),
    ],
  });
}
