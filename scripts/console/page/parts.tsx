/** Small parts of every page: status, copy button, errors, sparkline, list with a window. */
import { type Signal, signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Failure } from "./api.ts";
import { count } from "./format.ts";
import { setQuery } from "./route.ts";
import { reconnections } from "./store.ts";

const COPIED_MILLISECONDS = 1_500;
/** Rows above and below the visible part of a list. */
const OVERSCAN_ROWS = 8;

/** The sentence for screen readers. */
export const announcement = signal("");
const ANNOUNCE_MILLISECONDS = 5_000;
let announcedAt = 0;

/** Sends a sentence to screen readers, at most one each five seconds. */
export function announce(text: string): void {
  const now = performance.now();
  if (now - announcedAt < ANNOUNCE_MILLISECONDS) return;
  announcedAt = now;
  announcement.value = text;
}

/** Returns the sentence of an error. An error of the program stays visible in the browser's console. */
export function sentenceOf(error: unknown): string {
  if (error instanceof Failure) return error.message;
  console.error(error);
  return `The page failed: ${String(error)}`;
}

const WORDS: Readonly<Record<string, string>> = {
  settled: "good",
  running: "good",
  live: "good",
  done: "good",
  balanced: "good",
  "not balanced": "bad",
  starting: "busy",
  connecting: "busy",
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

/** Shows a word with a mark. Each mark has another shape, because some readers cannot see the colour. */
export function Status({ word }: { word: string }) {
  const kind = WORDS[word] ?? "idle";
  return (
    <span class={`status ${kind}`}>
      <svg aria-hidden="true" viewBox="0 0 10 10" class="mark">
        {kind === "good" && <circle cx="5" cy="5" r="4" />}
        {kind === "busy" && <path d="M5 1 L9 5 L5 9 L1 5 Z" />}
        {kind === "warn" && <path d="M5 1 L9.5 9 L.5 9 Z" />}
        {kind === "bad" && <path d="M1 1 h8 v8 h-8 Z" />}
        {kind === "idle" && <circle cx="5" cy="5" r="3" class="hollow" />}
      </svg>
      {word}
    </span>
  );
}

/** Copies a text. */
export function Copy({ text, label }: { text: string; label: string }) {
  const result = useSignal("");
  const copy = async () => {
    // A browser may refuse the clipboard, such as in a frame or by a policy.
    result.value = await navigator.clipboard.writeText(text).then(
      () => "Copied",
      () => "The browser refused",
    );
    announce(result.value);
    setTimeout(() => {
      result.value = "";
    }, COPIED_MILLISECONDS);
  };
  return (
    <button type="button" class="quiet" onClick={() => void copy()}>
      {result.value || label}
    </button>
  );
}

/** Shows a failure as a sentence. */
export function Problem({ text }: { text: string }) {
  return text === "" ? null : (
    <p class="problem" role="alert">
      {text}
    </p>
  );
}

/** A button whose work may take a while and may fail. */
export function Action({
  children,
  work,
  disabled = "",
  kind = "",
  label,
}: {
  children: ComponentChildren;
  work: () => Promise<unknown>;
  /** The reason why the button cannot be used. */
  disabled?: string;
  kind?: string;
  label?: string;
}) {
  const busy = useSignal(false);
  const problem = useSignal("");
  const button = useRef<HTMLButtonElement>(null);
  const isOff = busy.value || disabled !== "";
  // A button that is removed would leave the focus at the document.
  useLayoutEffect(() => {
    const element = button.current;
    return () => {
      if (element === null || document.activeElement !== element) return;
      const near =
        element.closest("tr")?.querySelector<HTMLElement>("a") ?? document.querySelector<HTMLElement>("main");
      near?.focus();
    };
  }, []);
  const click = async () => {
    if (busy.value || disabled !== "") return;
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
  return (
    <>
      <button
        type="button"
        class={kind}
        aria-label={label}
        ref={button}
        // The attribute `disabled` would take the focus away.
        aria-disabled={isOff || undefined}
        data-busy={busy.value || undefined}
        title={disabled || undefined}
        onClick={() => void click()}
      >
        {children}
        {busy.value && " …"}
        {disabled !== "" && <small> ({disabled})</small>}
      </button>
      <Problem text={problem.value} />
    </>
  );
}

/** Draws a line of figures. The text beside it contains the figure. */
export function Sparkline({ values }: { values: readonly number[] }) {
  const most = Math.max(1, ...values);
  const points = values.map((value, index) => `${index},${(14 - (value / most) * 12).toFixed(1)}`).join(" ");
  return (
    <svg
      class="sparkline"
      viewBox={`0 0 ${Math.max(1, values.length - 1)} 15`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <polyline points={points} />
    </svg>
  );
}

/** Reads data again whenever `key` changes, and when the connection is back. */
export function useData<T>(read: () => Promise<T>, key: string | number): { data: T | undefined; problem: string } {
  const [state, setState] = useState<{ data: T | undefined; problem: string }>({ data: undefined, problem: "" });
  const latest = useRef(0);
  useEffect(() => {
    const number = ++latest.current;
    const set = (next: (old: T | undefined) => { data: T | undefined; problem: string }) => {
      if (number === latest.current) setState(({ data }) => next(data));
    };
    read().then(
      (data) => set(() => ({ data, problem: "" })),
      // The old data stays: a failed query is not an empty list.
      (error: unknown) => set((data) => ({ data, problem: sentenceOf(error) })),
    );
  }, [key, reconnections.value]);
  return state;
}

interface Column<T> {
  readonly title: string;
  readonly class?: string;
  cell(row: T): ComponentChildren;
}

/**
 * A table that has only its visible rows in the document. It follows new rows at its top while the pointer is elsewhere; otherwise a
 * button counts them. `rows` begins with the newest.
 */
export function WindowTable<T>({
  rows,
  keyOf,
  columns,
  label,
  rowHeight = 34,
  paused,
  selected,
  empty,
}: {
  rows: readonly T[];
  keyOf(row: T): string;
  columns: readonly Column<T>[];
  label: string;
  rowHeight?: number;
  paused: boolean;
  selected?: string;
  empty: ComponentChildren;
}) {
  const scroller = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  const [hovered, setHovered] = useState(false);
  /** The newest row that is shown; undefined while the list follows. */
  const [anchor, setAnchor] = useState<string | undefined>(undefined);
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
  const size = (pixels: number) => ({ height: `${pixels}px` });
  return (
    <div class="window">
      {news > 0 && (
        <button type="button" class="news" onClick={showNew}>
          {count(news)} new
        </button>
      )}
      <div
        ref={scroller}
        class="scroller"
        tabIndex={0}
        role="group"
        aria-label={`${label}, scrollable`}
        onScroll={(event) => setTop(event.currentTarget.scrollTop)}
      >
        <div role="table" aria-label={label} aria-rowcount={shown.length + 1} class="rows">
          <div role="row" class="row head" aria-rowindex={1} tabIndex={-1}>
            {columns.map((column) => (
              <div key={column.title} role="columnheader" class={column.class} tabIndex={-1}>
                {column.title}
              </div>
            ))}
          </div>
          <div role="rowgroup" onMouseEnter={() => setHovered(true)} onMouseLeave={() => setHovered(false)}>
            <div role="presentation" style={size(from * rowHeight)} />
            {shown.slice(from, to).map((row, index) => (
              <div
                key={keyOf(row)}
                role="row"
                tabIndex={-1}
                class={`row${keyOf(row) === selected ? " selected" : ""}`}
                aria-rowindex={from + index + 2}
                style={size(rowHeight)}
              >
                {columns.map((column) => (
                  <div key={column.title} role="cell" class={column.class}>
                    {column.cell(row)}
                  </div>
                ))}
              </div>
            ))}
            <div role="presentation" style={size(Math.max(0, (shown.length - to) * rowHeight))} />
          </div>
        </div>
        {shown.length === 0 && <p class="empty">{empty}</p>}
      </div>
    </div>
  );
}

/** The filter of a list. The address of the page keeps its text. */
export function FilterBox({
  label = "Filter",
  text,
  placeholder,
}: {
  label?: string;
  text: string;
  placeholder?: string;
}) {
  return (
    <label>
      <span>{label}</span>
      <input
        type="search"
        class="filter"
        value={text}
        placeholder={placeholder}
        onInput={(event) => setQuery({ filter: event.currentTarget.value })}
      />
    </label>
  );
}

/** Stops the growth of a list, and continues it. */
export function PauseButton({ paused }: { paused: Signal<boolean> }) {
  return (
    <button type="button" aria-pressed={paused.value} onClick={() => (paused.value = !paused.value)}>
      {paused.value ? "Continue" : "Pause"}
    </button>
  );
}
