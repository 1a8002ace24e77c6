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

/** Returns the report of promtool about rules or tests of rules. @throws {Error} with the report, when it refuses them */
async function report(content: object, call: "check" | "test"): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-rules-"));
  try {
    const file = join(folder, "rules.yaml");
    await writeFile(file, JSON.stringify(content));
    return execFileSync("promtool", [call, "rules", file], { encoding: "utf8" });
  } finally {
    await rm(folder, { recursive: true });
  }
}

const MINUTES = 40;
const always = (value: number) => `${value}x${MINUTES}`;
/** A counter that grows by so much each minute. */
const growing = (value: number) => `0+${value}x${MINUTES}`;
const requests = (status: number) =>
  `http_server_request_duration_seconds_count{service_namespace="lotus",http_response_status_code="${status}"}`;
const coldStarts = (seconds: string) => `faas_init_duration_seconds_bucket{le="${seconds}"}`;

/** Series of a Lotus without a fault. */
const HEALTHY: Readonly<Record<string, string>> = {
  lotus_outbox_rows: always(3),
  lotus_outbox_age_seconds: always(50),
  lotus_dead_letters: always(0),
  lotus_trial_balance: always(0),
  lotus_seal_age_seconds: always(3_600),
  [requests(200)]: growing(1_000),
  [requests(503)]: growing(5),
  [coldStarts("2.5")]: growing(10),
  [coldStarts("5")]: growing(10),
  [coldStarts("+Inf")]: growing(10),
};

/** The alert of each fault, with the series that differ. An empty text: the series does not exist. */
const FIRING: readonly (readonly [alert: string, series: Readonly<Record<string, string>>])[] = [
  ["none", {}],
  ["LotusOutboxOld", { lotus_outbox_age_seconds: always(70) }],
  ["LotusDeadLetters", { lotus_dead_letters: always(1) }],
  ["LotusTrialBalance", { lotus_trial_balance: always(-1) }],
  ["LotusSealOld", { lotus_seal_age_seconds: always(7_300) }],
  ["LotusServerErrors", { [requests(503)]: growing(20) }],
  ["LotusColdStartsSlow", { [coldStarts("2.5")]: growing(5) }],
  ["LotusRelaySilent", { lotus_outbox_rows: "" }],
];

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

    it.each(FIRING)("fire the alert %s for its cause only", async (alert, series) => {
      const values = { ...HEALTHY, ...series };
      const test = {
        rule_files: [ALERTS],
        evaluation_interval: "1m",
        tests: [
          {
            interval: "1m",
            input_series: Object.entries(values).flatMap(([name, value]) =>
              value === "" ? [] : [{ series: name, values: value }],
            ),
            promql_expr_test: [
              {
                expr: 'count by (alertname) (ALERTS{alertstate="firing"})',
                eval_time: `${MINUTES}m`,
                exp_samples: alert === "none" ? [] : [{ labels: `{alertname="${alert}"}`, value: 1 }],
              },
            ],
          },
        ],
      };
      expect(await report(test, "test")).toContain("SUCCESS");
    });

    it("have a cause in this test for each alert", async () => {
      const tested = FIRING.map(([alert]) => alert).filter((alert) => alert !== "none");
      expect(tested.sort()).toEqual((await readRules()).map(({ alert }) => alert).sort());
    });

    it("have valid expressions in every panel", async () => {
      const rules = (await readPanels()).map((expr, index) => ({
        record: `panel_${index}`,
        // Grafana replaces its variables before it asks Prometheus.
        expr: expr.replaceAll(/\$__rate_interval/g, "5m"),
      }));
      expect(rules.length).toBeGreaterThan(0);
      expect(await report({ groups: [{ name: "panels", rules }] }, "check")).toContain(`${rules.length} rules found`);
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
