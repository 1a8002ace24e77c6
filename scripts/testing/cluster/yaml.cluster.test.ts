/** A real API server with its webhooks and pod security accepts every file of knative/, and knows every field. */
import { beforeAll, describe, expect, inject, it } from "vitest";
import { get, readDocuments, toYaml, yamlFiles } from "../../kubernetes/kubectl.ts";
import { attempt } from "../../process/run.ts";

const FOLDERS = ["", "/functions", "/sources", "/platform", "/platform/jobs", "/platform/kafka", "/platform/kafka-3"];
const files = (await Promise.all(FOLDERS.map((folder) => yamlFiles(`knative${folder}`)))).flat();
const METRICS = "knative/platform/metrics.yaml";

describe.skipIf(inject("cluster").skipped !== undefined)("a real API server", () => {
  let knowsPodMonitors = false;
  beforeAll(async () => {
    knowsPodMonitors = (await get("crd", "podmonitors.monitoring.coreos.com", "")) !== undefined;
    if (!knowsPodMonitors) console.log(`This cluster has no Prometheus operator, so ${METRICS} was not checked.`);
  });

  it.each(files)("accepts the unchanged %s", async (file) => {
    if (file === METRICS && !knowsPodMonitors) return;
    // A job that has run cannot be changed, so the test applies it under another name.
    const asked = (await readDocuments(file)).map((document) =>
      document.kind === "Job" ? { ...document, metadata: { ...document.metadata, name: "asked" } } : document,
    );
    const options = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    const { stdout, stderr } = await attempt("kubectl", options, { input: toYaml(asked) });
    // Kubernetes only warns of deprecated fields and of violations of pod security.
    expect(stderr).toBe("");
    expect(stdout).toMatch(/\(server dry run\)/);
  });
});
