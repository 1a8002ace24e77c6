/** The page of the console: the frame, the navigation, the theme and the keys. */
import "./style.css";
import { effect, signal } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Break } from "./break.tsx";
import { Events } from "./events.tsx";
import { clock, count, duration, money, toggleUtc, utc } from "./format.ts";
import { Ledger } from "./ledger.tsx";
import { Logs } from "./logs.tsx";
import { Overview } from "./overview.tsx";
import { announce, announcement, Status } from "./parts.tsx";
import { href, route } from "./route.ts";
import { connect, connection, database, databaseFigures, dropped, lastMessageAt, run } from "./store.ts";
import { Traces } from "./traces.tsx";
import { Try } from "./try.tsx";

const PAGES = [
  ["overview", "Overview", Overview],
  ["events", "Events", Events],
  ["ledger", "Ledger", Ledger],
  ["try", "Try it", Try],
  ["break", "Break it", Break],
  ["logs", "Logs", Logs],
] as const;

/** A trace is reached from its event, its log line or its call; the navigation marks the events meanwhile. */
const PAGE_OF_TRACE = ["events", "Trace", Traces] as const;

function currentPage() {
  const { page } = route.value;
  return page === "traces" ? PAGE_OF_TRACE : (PAGES.find(([name]) => name === page) ?? PAGES[0]);
}

const THEMES = ["auto", "light", "dark"] as const;
const theme = signal<string>(localStorage.getItem("lotus-theme") ?? "auto");
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

let lettersBefore: number | undefined;
effect(() => {
  const now = databaseFigures.value?.deadLetters;
  if (now === undefined) return;
  if (lettersBefore !== undefined && now > lettersBefore)
    newDeadLetter.value = `There is a new dead letter: ${now} in total.`;
  lettersBefore = now;
});
effect(() => announce(connection.value === "live" ? "The page is live." : `The page is ${connection.value}.`));
effect(() => {
  const [, title] = currentPage();
  document.title = `${title} · Lotus local`;
});

function Frame() {
  const figures = databaseFigures.value;
  const isBalanced = figures?.trialBalance === "0";
  return (
    <header class="frame">
      <a class="brand" href={href("overview")}>
        <img src="/console/icon.svg" alt="" width="22" height="22" /> Lotus local
      </a>
      <Status word={connection.value} />
      {dropped.value > 0 && <span class="chip warn">{count(dropped.value)} dropped</span>}
      {figures === undefined ? (
        <span class="chip warn">{run.value === "" ? "loading" : database.value}</span>
      ) : (
        <>
          <a class={figures.outboxDepth > 0 ? "chip busy" : "chip"} href={href("events", "", { tab: "outbox" })}>
            outbox {count(figures.outboxDepth)}
            {figures.outboxDepth > 0 && <small>, {duration(figures.outboxAgeMilliseconds * 1000)}</small>}
          </a>
          <a class={figures.deadLetters > 0 ? "chip warn" : "chip"} href={href("events", "", { tab: "dead-letters" })}>
            dead letters {count(figures.deadLetters)}
          </a>
          <a class={isBalanced ? "chip good" : "chip warn"} href={href("ledger")}>
            balance {money(figures.trialBalance)}
          </a>
        </>
      )}
      <span class="spacer" />
      <button type="button" class="quiet" aria-pressed={utc.value} onClick={toggleUtc}>
        UTC
      </button>
      <label class="theme">
        <span class="hidden">Theme</span>
        <select value={theme.value} onChange={(event) => (theme.value = event.currentTarget.value)}>
          {THEMES.map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      <button type="button" class="quiet keys" aria-label="Keys" onClick={() => (help.value = true)}>
        ?
      </button>
    </header>
  );
}

/** Says that the figures on the page are old. */
function Banner() {
  const since = lastMessageAt.value === 0 ? "" : ` The page shows the state of ${clock(lastMessageAt.value)}.`;
  return <p class="banner">Lotus does not answer; the page connects again by itself.{since}</p>;
}

function Help() {
  const element = useRef<HTMLDialogElement>(null);
  // A modal dialog takes the focus, keeps it, closes at Escape, and gives the focus back.
  useEffect(() => {
    if (help.value) element.current?.showModal();
    else element.current?.close();
  }, [help.value]);
  return (
    <dialog ref={element} aria-label="Keys" onClose={() => (help.value = false)}>
      <h2>Keys</h2>
      <dl class="attributes">
        {[
          ["/", "moves to the filter"],
          ["j, k", "opens the next or the previous event"],
          ["Enter", "opens the row with the focus"],
          ["Esc", "closes the event"],
          ["?", "shows this list"],
        ].map(([key, text]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{text}</dd>
          </div>
        ))}
      </dl>
      <label>
        <input type="checkbox" checked={keys.value} onChange={(event) => (keys.value = event.currentTarget.checked)} />{" "}
        Single keys work
      </label>
      <p>
        <button type="button" onClick={() => (help.value = false)}>
          Close
        </button>
      </p>
    </dialog>
  );
}

function App() {
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      const isText = event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
      if (!keys.value || isText || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "?") help.value = !help.value;
      if (event.key !== "/") return;
      const filter = document.querySelector<HTMLInputElement>("input.filter");
      if (filter === null) return;
      event.preventDefault();
      filter.focus();
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, []);
  const { page, id } = route.value;
  // The link or button that opened this page may be removed. The focus would then move to the top of the document.
  useEffect(() => {
    if (document.activeElement === document.body) document.querySelector<HTMLElement>("main")?.focus();
  }, [page, id]);
  const [current, , Page] = currentPage();
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.querySelector<HTMLElement>("main")?.focus();
        }}
      >
        Skip to the content
      </a>
      <Frame />
      {connection.value === "reconnecting" && <Banner />}
      <div class="body">
        <nav class="pages" aria-label="Pages">
          {PAGES.map(([page, title]) => (
            <a key={page} href={href(page)} aria-current={page === current ? "page" : undefined}>
              {title}
            </a>
          ))}
          <a class="docs" href="/docs">
            API
          </a>
        </nav>
        <main tabIndex={-1} id="main">
          <Page />
        </main>
      </div>
      <Help />
      <p role="status" class="hidden">
        {announcement.value}
      </p>
      <p role="alert" class="hidden">
        {newDeadLetter.value}
      </p>
    </>
  );
}

connect();
const root = document.getElementById("app");
if (root !== null) render(<App />, root);
