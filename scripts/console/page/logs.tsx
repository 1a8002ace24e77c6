/** The log lines with their filters. A click on a trace opens the trace, or its event in a run without traces. */
import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import type { TraceDetail } from "../protocol.ts";
import { get } from "./api.ts";
import { clock, count, short } from "./format.ts";
import { FilterBox, PauseButton, Problem, sentenceOf, WindowTable } from "./parts.tsx";
import { open, route, setQuery } from "./route.ts";
import { lines, linesVersion, type ParsedLine, processes, spanTarget } from "./store.ts";

const LEVELS = ["", "info", "warning", "error", "news", "text"] as const;

function download(rows: readonly ParsedLine[]): void {
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
  const [fn, level, trace, text = ""] = ["function", "level", "trace", "filter"].map((name) => query.get(name) ?? "");
  const paused = useSignal(false);
  const problem = useSignal("");
  const version = linesVersion.value;
  const rows = useMemo(() => {
    const found: ParsedLine[] = [];
    for (let i = lines.length - 1; i >= 0; i--) {
      const line = lines[i] as ParsedLine;
      if (fn && line.name !== fn) continue;
      if (level && line.level !== level) continue;
      if (trace && !line.trace.startsWith(trace)) continue;
      if (text && !line.text.includes(text)) continue;
      found.push(line);
    }
    return found;
  }, [version, fn, level, trace, text]);
  const openTrace = async (id: string) => {
    if (spanTarget.value === "console") return open("traces", id);
    try {
      const { events } = await get<TraceDetail>(`traces/${id}`);
      problem.value = "";
      const newest = events.at(-1);
      if (newest === undefined) setQuery({ trace: id });
      else open("events", newest.id);
    } catch (error) {
      problem.value = sentenceOf(error);
    }
  };
  return (
    <>
      <h1>Logs</h1>
      <div class="toolbar">
        <label>
          <span>Function</span>
          <select value={fn} onChange={(event) => setQuery({ function: event.currentTarget.value })}>
            <option value="">all</option>
            {processes.value.map(({ name }) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <label>
          <span>Level</span>
          <select value={level} onChange={(event) => setQuery({ level: event.currentTarget.value })}>
            {LEVELS.map((name) => (
              <option key={name} value={name}>
                {name || "all"}
              </option>
            ))}
          </select>
        </label>
        <label>
          <span>Trace</span>
          <input
            type="search"
            value={trace}
            onInput={(event) => setQuery({ trace: event.currentTarget.value.trim() })}
          />
        </label>
        <FilterBox label="Text" text={text} />
        <PauseButton paused={paused} />
        <button type="button" onClick={() => download(rows)}>
          Download
        </button>
        <span class="total">{count(rows.length)} lines</span>
      </div>
      <Problem text={problem.value} />
      <WindowTable
        rows={rows}
        keyOf={(row) => String(row.id)}
        label="Log lines"
        paused={paused.value}
        empty="No line matches these filters."
        columns={[
          { title: "Time", class: "time", cell: (row) => clock(Date.parse(row.time) * 1000) },
          { title: "Function", class: "name", cell: (row) => row.name },
          {
            title: "Level",
            class: "level optional",
            cell: (row) => <span class={`level-${row.level}`}>{row.level}</span>,
          },
          { title: "Message", class: "grow", cell: (row) => <span title={row.text}>{row.message}</span> },
          {
            title: "Trace",
            class: "id trace",
            cell: (row) =>
              row.trace && (
                <button type="button" class="link" onClick={() => void openTrace(row.trace)}>
                  {short(row.trace)}
                </button>
              ),
          },
        ]}
      />
    </>
  );
}
