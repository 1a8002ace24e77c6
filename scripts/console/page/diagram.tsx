/** The diagram of the overview: endpoints → topics → triggers. A node and its lines flash when an event passes. */
import { useEffect, useState } from "preact/hooks";
import { href } from "./route.ts";
import { processes, recentRequests, topology, touched } from "./store.ts";

const ROW = 26;
const TOP = 30;
const NODE_HEIGHT = 20;
const COLUMNS = [
  { x: 0, width: 220 },
  { x: 320, width: 190 },
  { x: 610, width: 190 },
] as const;
const WIDTH = 800;
/** At most three flashes a second (WCAG 2.3.1). */
const FLASH_MILLISECONDS = 400;

interface Node {
  readonly name: string;
  readonly text: string;
  readonly column: 0 | 1 | 2;
  readonly y: number;
  readonly isFunction: boolean;
}

function useFlash(): ReadonlySet<string> {
  const [lit, setLit] = useState<ReadonlySet<string>>(new Set());
  const names = touched.value;
  useEffect(() => {
    if (names.size === 0 || lit.size > 0) return;
    setLit(names);
    const timer = setTimeout(() => setLit(new Set()), FLASH_MILLISECONDS);
    return () => clearTimeout(timer);
  }, [names]);
  return lit;
}

/** Draws the functions and topics of Lotus. */
export function Diagram() {
  const { endpoints, topics, triggers, others } = topology.value;
  const lit = useFlash();
  const states = new Map(processes.value.map(({ name, state }) => [name, state]));
  const rows = Math.max(endpoints.length, topics.length, triggers.length + others.length);
  const spread = (index: number, length: number, all: number) =>
    TOP + ((index + 0.5) * all * ROW) / Math.max(1, length);
  const nodes: Node[] = [
    ...endpoints.map(
      ({ name, call }, i) => ({ name, text: call, column: 0, y: TOP + (i + 0.5) * ROW, isFunction: true }) as const,
    ),
    ...topics.map(
      (name, i) => ({ name, text: name, column: 1, y: spread(i, topics.length, rows), isFunction: false }) as const,
    ),
    ...[...triggers, ...others].map(
      ({ name }, i) =>
        ({
          name,
          text: name,
          column: 2,
          y: spread(i, triggers.length + others.length, rows),
          isFunction: true,
        }) as const,
    ),
  ];
  const at = (name: string, column: number) => nodes.find((node) => node.name === name && node.column === column);
  const edges = [
    ...endpoints.flatMap(({ name, topics: targets }) =>
      targets.map((topic) => ({ from: at(name, 0), to: at(topic, 1) })),
    ),
    ...others.flatMap(({ name, topics: targets }) => targets.map((topic) => ({ from: at(topic, 1), to: at(name, 2) }))),
    ...triggers.map(({ name, topic }) => ({ from: at(topic, 1), to: at(name, 2) })),
  ];
  return (
    <div class="diagram" tabIndex={0} role="group" aria-label="Endpoints, topics and triggers">
      <svg
        viewBox={`-1 0 ${WIDTH + 2} ${TOP + rows * ROW + 4}`}
        role="group"
        aria-label="Diagram: endpoints publish to topics, topics invoke triggers"
      >
        {["Endpoints", "Topics", "Triggers"].map((title, i) => (
          <text key={title} x={COLUMNS[i]?.x} y="16" class="title">
            {title}
          </text>
        ))}
        {edges.map(({ from, to }) => {
          if (from === undefined || to === undefined) return null;
          const x = COLUMNS[from.column].x + COLUMNS[from.column].width;
          const end = COLUMNS[to.column].x;
          const middle = (x + end) / 2;
          const isLit = lit.has(from.name) && (lit.has(to.name) || to.column === 2);
          return (
            <path
              key={`${from.name} ${to.name}`}
              class={isLit ? "edge lit" : "edge"}
              d={`M${x} ${from.y} C${middle} ${from.y} ${middle} ${to.y} ${end} ${to.y}`}
            />
          );
        })}
        {nodes.map(({ name, text, column, y, isFunction }) => {
          const { x, width } = COLUMNS[column];
          const state = states.get(name);
          const isWarm = state !== undefined && state !== "zero";
          const isLit = lit.has(name) || (isFunction && recentRequests(name) > 0);
          const shape = (
            <>
              <rect x={x} y={y - NODE_HEIGHT / 2} width={width} height={NODE_HEIGHT} rx="4" />
              {isFunction && <circle cx={x + 11} cy={y} r="3.5" class={isWarm ? "warm" : "hollow"} />}
              <text x={x + (isFunction ? 21 : 9)} y={y + 4}>
                {text}
              </text>
            </>
          );
          return (
            <a
              key={`${column} ${name}`}
              class={`node${isLit ? " lit" : ""}${isFunction ? "" : " topic"}`}
              href={isFunction ? href("logs", "", { function: name }) : href("events", "", { filter: name })}
            >
              <title>
                {isFunction ? `${name}: ${state ?? "unknown"}. Opens its log lines.` : `Opens the events of ${name}.`}
              </title>
              {shape}
            </a>
          );
        })}
      </svg>
    </div>
  );
}
