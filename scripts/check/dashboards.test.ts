import { execFileSync } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
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

/** Returns the expressions of the dashboard. */
async function readPanels(): Promise<string[]> {
  const { panels } = JSON.parse(await readFile(join(ROOT, "docs/grafana/lotus.json"), "utf8")) as Dashboard;
  return panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));
}

/** Returns the report of promtool about a file of rules. @throws {Error} with the report, when it refuses them */
const checkRules = (file: string) => execFileSync("promtool", ["check", "rules", file], { encoding: "utf8" });

describe("the dashboard and the alerts", () => {
  it("read only metrics that functions or Knative export", async () => {
    const expressions = [...(await readPanels()), ...(await readRules()).map(({ expr }) => expr)];
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

  // .ci/run installs promtool and sets CI: the test fails there without it.
  describe.skipIf(!hasPromtool() && process.env.CI === undefined)("for promtool", () => {
    it("have valid alerts", () => {
      expect(checkRules(ALERTS)).toContain("SUCCESS");
    });

    it("have valid expressions in every panel", async () => {
      const rules = (await readPanels()).map((expr, index) => ({
        record: `panel_${index}`,
        // Grafana replaces its variables before it asks Prometheus.
        expr: expr.replaceAll(/\$__rate_interval/g, "5m"),
      }));
      expect(rules.length).toBeGreaterThan(0);
      const folder = await mkdtemp(join(tmpdir(), "lotus-rules-"));
      try {
        const file = join(folder, "panels.yaml");
        await writeFile(file, JSON.stringify({ groups: [{ name: "panels", rules }] }));
        expect(checkRules(file)).toContain(`${rules.length} rules found`);
      } finally {
        await rm(folder, { recursive: true });
      }
    });
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
