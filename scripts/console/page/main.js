import { Fragment as _Fragment, jsx as _jsx, jsxs as _jsxs } from "preact/jsx-runtime";
/** The page of the console: the frame, the navigation, the theme and the keys. */
import "./style.css";
import { effect, signal } from "@preact/signals";
import { render } from "preact";
import { useEffect } from "preact/hooks";
import { Events } from "./events.tsx";
import { count, duration, money, toggleUtc, utc } from "./format.ts";
import { Logs } from "./logs.tsx";
import { Overview } from "./overview.tsx";
import { announce, announcement, Status } from "./parts.tsx";
import { href, route } from "./route.ts";
import { connect, connection, database, databaseFigures, dropped, run } from "./store.ts";

const PAGES = [
  ["overview", "Overview", Overview],
  ["events", "Events", Events],
  ["logs", "Logs", Logs],
];
const THEMES = ["auto", "light", "dark"];
const theme = signal(localStorage.getItem("lotus-theme") ?? "auto");
const keys = signal(localStorage.getItem("lotus-keys") !== "off");
const help = signal(false);
const newDeadLetter = signal("");
effect(() => {
  localStorage.setItem("lotus-theme", theme.value);
  document.documentElement.dataset.theme = theme.value;
});
effect(() => {
  localStorage.setItem("lotus-keys", keys.value ? "on" : "off");
});
let lettersBefore;
effect(() => {
  const now = databaseFigures.value?.deadLetters;
  if (now === undefined) return;
  if (lettersBefore !== undefined && now > lettersBefore)
    newDeadLetter.value = `There is a new dead letter: ${now} in total.`;
  lettersBefore = now;
});
effect(() => announce(connection.value === "live" ? "The page is live." : "The page is reconnecting."));
effect(() => {
  const [, title] = PAGES.find(([page]) => page === route.value.page) ?? PAGES[0];
  document.title = `${title} · Lotus local`;
});
function Frame() {
  const figures = databaseFigures.value;
  const isBalanced = figures?.trialBalance === "0";
  return _jsxs("header", {
    class: "frame",
    children: [
      _jsxs("a", {
        class: "brand",
        href: href("overview"),
        children: [_jsx("img", { src: "/console/icon.svg", alt: "", width: "22", height: "22" }), " Lotus local"],
      }),
      _jsx(Status, { word: connection.value }),
      dropped.value > 0 && _jsxs("span", { class: "chip warn", children: [count(dropped.value), " dropped"] }),
      figures === undefined
        ? _jsx("span", { class: "chip warn", children: run.value === "" ? "loading" : database.value })
        : _jsxs(_Fragment, {
            children: [
              _jsxs("a", {
                class: figures.outboxDepth > 0 ? "chip busy" : "chip",
                href: href("events", "", { tab: "outbox" }),
                children: [
                  "outbox ",
                  count(figures.outboxDepth),
                  figures.outboxDepth > 0 &&
                    _jsxs("small", { children: [", ", duration(figures.outboxAgeMilliseconds * 1000)] }),
                ],
              }),
              _jsxs("a", {
                class: figures.deadLetters > 0 ? "chip warn" : "chip",
                href: href("events", "", { tab: "dead-letters" }),
                children: ["dead letters ", count(figures.deadLetters)],
              }),
              _jsxs("a", {
                class: isBalanced ? "chip good" : "chip warn",
                href: href("ledger"),
                children: ["balance ", money(figures.trialBalance)],
              }),
            ],
          }),
      _jsx("span", { class: "spacer" }),
      _jsx("button", {
        type: "button",
        class: "quiet",
        "aria-pressed": utc.value,
        onClick: toggleUtc,
        children: "UTC",
      }),
      _jsxs("label", {
        class: "theme",
        children: [
          _jsx("span", { class: "hidden", children: "Theme" }),
          _jsx("select", {
            value: theme.value,
            onChange: (event) => (theme.value = event.currentTarget.value),
            children: THEMES.map((name) => _jsx("option", { children: name }, name)),
          }),
        ],
      }),
      _jsx("button", {
        type: "button",
        class: "quiet",
        "aria-label": "Keys",
        onClick: () => (help.value = true),
        children: "?",
      }),
    ],
  });
}
function Help() {
  if (!help.value) return null;
  return _jsxs("dialog", {
    open: true,
    "aria-label": "Keys",
    onKeyDown: (event) => {
      if (event.key === "Escape") help.value = false;
    },
    children: [
      _jsx("h2", { children: "Keys" }),
      _jsx("dl", {
        class: "attributes",
        children: [
          ["/", "moves to the filter"],
          ["j, k", "opens the next or the previous event"],
          ["Enter", "opens the row with the focus"],
          ["Esc", "closes the event"],
          ["?", "shows this list"],
        ].map(([key, text]) =>
          _jsxs(
            "div",
            { children: [_jsx("dt", { children: _jsx("kbd", { children: key }) }), _jsx("dd", { children: text })] },
            key,
          ),
        ),
      }),
      _jsxs("label", {
        children: [
          _jsx("input", {
            type: "checkbox",
            checked: keys.value,
            onChange: (event) => (keys.value = event.currentTarget.checked),
          }),
          " ",
          "Single keys work",
        ],
      }),
      _jsx("p", {
        children: _jsx("button", { type: "button", onClick: () => (help.value = false), children: "Close" }),
      }),
    ],
  });
}
function App() {
  useEffect(() => {
    const key = (event) => {
      if (event.key === "Escape") help.value = false;
      const isText = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
      if (!keys.value || isText || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "?") help.value = !help.value;
      if (event.key !== "/") return;
      const filter = document.querySelector("input.filter");
      if (filter === null) return;
      event.preventDefault();
      filter.focus();
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, []);
  const [current, , Page] = PAGES.find(([page]) => page === route.value.page) ?? PAGES[0];
  return _jsxs(_Fragment, {
    children: [
      _jsx("a", {
        class: "skip",
        href: "#main",
        onClick: (event) => {
          event.preventDefault();
          document.querySelector("main")?.focus();
        },
        children: "Skip to the content",
      }),
      _jsx(Frame, {}),
      _jsxs("div", {
        class: "body",
        children: [
          _jsxs("nav", {
            class: "pages",
            "aria-label": "Pages",
            children: [
              PAGES.map(([page, title]) =>
                _jsx(
                  "a",
                  { href: href(page), "aria-current": page === current ? "page" : undefined, children: title },
                  page,
                ),
              ),
              _jsx("a", { href: "/docs", children: "API" }),
            ],
          }),
          _jsx("main", { tabIndex: -1, id: "main", children: _jsx(Page, {}) }),
        ],
      }),
      _jsx(Help, {}),
      _jsx("p", { role: "status", class: "hidden", children: announcement.value }),
      _jsx("p", { role: "alert", class: "hidden", children: newDeadLetter.value }),
    ],
  });
}
connect();
const root = document.getElementById("app");
if (root !== null) render(_jsx(App, {}), root);
