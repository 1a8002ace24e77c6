import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import { METRICS } from "#kernel/telemetry-sdk";
import { ROOT } from "../project/paths.ts";

const ALERTS = join(ROOT, "docs/grafana/alerts.yaml");

interface Rules {
  readonly groups: readonly {
    readonly rules: readonly {
      readonly alert: string;
      readonly expr: string;
      readonly annotations: { runbook: string };
    }[];
  }[];
}
interface Dashboard {
  readonly panels: readonly { readonly title: string; readonly targets: readonly { readonly expr: string }[] }[];
}

/** Metrics of Knative, which the functions do not export. */
const OF_KNATIVE = new Set(["kn_revision_request_concurrency"]);

/** Names of a metric as an OpenTelemetry collector writes it for Prometheus (OpenTelemetry, "Prometheus and OpenMetrics Compatibility"). */
function prometheusNames(): Set<string> {
  const names = Object.entries(METRICS).flatMap(([metric, { kind, unit }]) => {
    const base = metric.replaceAll(".", "_") + (unit === "s" ? "_seconds" : "");
    if (kind === "histogram") return ["_bucket", "_sum", "_count"].map((suffix) => base + suffix);
    return [kind === "counter" ? `${base}_total` : base];
  });
  return new Set([...names, ...OF_KNATIVE]);
}

/** Returns the metrics that an expression reads: names with an underscore outside of braces, brackets and label lists. */
function metricsOf(expression: string): string[] {
  const bare = expression
    .replace(/\{[^}]*\}/g, "")
    .replace(/\[[^\]]*\]/g, "")
    .replace(/\b(?:by|without)\s*\([^)]*\)/g, "");
  return [...bare.matchAll(/\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b/g)]
    .map(([name]) => name)
    .filter((name) => name !== "histogram_quantile");
}

const readRules = async () => (parse(await readFile(ALERTS, "utf8")) as Rules).groups.flatMap(({ rules }) => rules);

describe("the dashboard and the alerts", () => {
  it("read only metrics that functions or Knative export", async () => {
    const text = await readFile(join(ROOT, "docs/grafana/lotus.json"), "utf8");
    const { panels } = JSON.parse(text) as Dashboard;
    const expressions = [
      ...panels.flatMap(({ targets }) => targets.map(({ expr }) => expr)),
      ...(await readRules()).map(({ expr }) => expr),
    ];
    const known = prometheusNames();
    for (const expression of expressions) {
      const metrics = metricsOf(expression);
      expect(metrics, expression).not.toEqual([]);
      expect(
        metrics.filter((name) => !known.has(name)),
        expression,
      ).toEqual([]);
    }
  });

  it("use every metric", async () => {
    const text = await readFile(join(ROOT, "docs/grafana/lotus.json"), "utf8");
    const unused = Object.keys(METRICS).filter((metric) => !text.includes(metric.replaceAll(".", "_")));
    expect(unused).toEqual([]);
  });

  it("have a section in the runbook for each alert", async () => {
    const runbook = await readFile(join(ROOT, "docs/operations.md"), "utf8");
    for (const { alert, annotations } of await readRules()) {
      expect(annotations.runbook).toBe(`docs/operations.md#${alert.toLowerCase()}`);
      expect(runbook).toContain(`### ${alert}\n`);
    }
  });

  it.runIf(hasPromtool())("are accepted by promtool", () => {
    expect(execFileSync("promtool", ["check", "rules", ALERTS], { encoding: "utf8" })).toContain("SUCCESS");
  });
});

function hasPromtool(): boolean {
  try {
    execFileSync("promtool", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}
