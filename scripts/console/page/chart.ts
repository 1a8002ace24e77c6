/** The chart of a load: payments and outbox depth for each second. A canvas ignores CSS, so the colours are read from the page. */
import uPlot from "uplot";
import type { LoadPoint } from "../protocol.ts";

const HEIGHT = 220;

/** Draws the chart into an element. Returns the function that removes it. */
export function drawChart(element: HTMLElement, points: readonly LoadPoint[]): () => void {
  // The value of a variable names the colours of both themes. The computed colour is that of the theme.
  const colour = (name: string) => {
    element.style.color = `var(${name})`;
    const { color } = getComputedStyle(element);
    element.style.color = "";
    return color;
  };
  const axis = {
    stroke: colour("--dim"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line") },
  };
  const chart = new uPlot(
    {
      width: element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false } },
      legend: { show: false },
      cursor: { show: false },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 60] }, axis],
      series: [
        {},
        { label: "answered", stroke: colour("--good"), width: 2 },
        { label: "failed or repeated", stroke: colour("--bad"), width: 2, dash: [4, 4] },
        {
          label: "outbox",
          stroke: colour("--busy"),
          width: 2,
          fill: `color-mix(in srgb, ${colour("--busy")} 19%, transparent)`,
        },
      ],
    },
    [
      points.map(({ second }) => second),
      points.map(({ answered }) => answered),
      points.map(({ failed }) => failed),
      points.map(({ outboxDepth }) => outboxDepth),
    ],
    element,
  );
  const observer = new ResizeObserver(() => chart.setSize({ width: element.clientWidth, height: HEIGHT }));
  observer.observe(element);
  return () => {
    observer.disconnect();
    chart.destroy();
  };
}
