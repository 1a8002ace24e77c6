/** Renders an environment: plain manifests with a kustomization for each stage, for kubectl, Argo CD and Flux. */
import { stringify } from "yaml";
import type { KubernetesObject } from "./kubectl.ts";
import { toYaml } from "./kubectl.ts";
import { type ClusterPlan, makePlan, type PlanInput } from "./plan.ts";

export const RENDERED_FOLDER = "knative/rendered";

/** The stages in their order. Flux applies one after the other by `dependsOn`, Argo CD by sync waves. */
export const STAGES = [
  "1-platform",
  "2-backends",
  "3-prepare",
  "4-preflight",
  "5-triggers",
  "6-endpoints",
  "7-sources",
  "8-routes",
] as const;
type Stage = (typeof STAGES)[number];

const HEADER = "# Rendered by `npx lotus deploy --render`. Change knative/environments and render again.\n";
/** Kinds that contain data or on which data depends: GitOps tools must not remove them. */
const KEPT_KINDS = ["Namespace", "StatefulSet"];

/** Where Knative Services and sources name other objects, so that kustomize renames the references with the objects. */
const REFERENCES = {
  nameReference: [
    ...["ConfigMap", "Secret"].map((kind) => ({
      kind,
      version: "v1",
      fieldSpecs: [
        {
          group: "serving.knative.dev",
          kind: "Service",
          path: `spec/template/spec/containers/env/valueFrom/${kind === "Secret" ? "secret" : "configMap"}KeyRef/name`,
        },
        ...(kind === "Secret"
          ? [{ group: "serving.knative.dev", kind: "Service", path: "spec/template/spec/volumes/secret/secretName" }]
          : []),
      ],
    })),
    {
      kind: "ServiceAccount",
      version: "v1",
      fieldSpecs: [{ group: "serving.knative.dev", kind: "Service", path: "spec/template/spec/serviceAccountName" }],
    },
    {
      kind: "Service",
      group: "serving.knative.dev",
      fieldSpecs: [
        { group: "sources.knative.dev", path: "spec/sink/ref/name" },
        { group: "sources.knative.dev", path: "spec/delivery/deadLetterSink/ref/name" },
      ],
    },
  ],
};

/** Adds the sync wave of Argo CD, and keeps data from being pruned. Returns a copy. */
function staged(object: KubernetesObject, stage: Stage): KubernetesObject {
  const annotations = {
    ...object.metadata.annotations,
    "argocd.argoproj.io/sync-wave": String(STAGES.indexOf(stage)),
    ...(KEPT_KINDS.includes(object.kind) && {
      "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
      "kustomize.toolkit.fluxcd.io/prune": "disabled",
    }),
  };
  return { ...object, metadata: { ...object.metadata, annotations } };
}

/** The files of each stage, each with its documents. */
function filesOf(plan: ClusterPlan, withMetrics: boolean): Record<Stage, Record<string, readonly KubernetesObject[]>> {
  const functions = (kind: "trigger" | "endpoint") =>
    Object.fromEntries(
      plan.functions
        .filter((fn) => fn.kind === kind)
        .map(({ name, service, disruptionBudget }) => [name, [service, disruptionBudget ?? []].flat()]),
    );
  return {
    "1-platform": { platform: [...plan.namespace, ...plan.platform], metrics: withMetrics ? plan.metrics : [] },
    "2-backends": { backends: plan.backends },
    "3-prepare": { migrate: [plan.migrate], topics: [plan.topics] },
    "4-preflight": { preflight: [plan.preflight] },
    "5-triggers": functions("trigger"),
    "6-endpoints": functions("endpoint"),
    "7-sources": Object.fromEntries(plan.functions.flatMap(({ name, source }) => (source ? [[name, [source]]] : []))),
    "8-routes": { routes: plan.routes },
  };
}

function kustomization(resources: readonly string[], references: boolean): string {
  const object = {
    apiVersion: "kustomize.config.k8s.io/v1beta1",
    kind: "Kustomization",
    resources,
    ...(references && { configurations: ["references.yaml"] }),
  };
  return HEADER + stringify(object, { lineWidth: 0 });
}

/**
 * Renders an environment.
 * @returns by path below the folder of the environment, the text of each file
 */
export async function render(input: PlanInput): Promise<Map<string, string>> {
  const plan = await makePlan(input);
  const files = new Map<string, string>();
  const stages = filesOf(plan, input.environment.metrics !== undefined);
  const used: string[] = [];
  for (const stage of STAGES) {
    const written = Object.entries(stages[stage]).filter(([, documents]) => documents.length > 0);
    if (written.length === 0) continue;
    used.push(stage);
    for (const [name, documents] of written)
      files.set(`${stage}/${name}.yaml`, HEADER + toYaml(documents.map((document) => staged(document, stage))));
    files.set(
      `${stage}/kustomization.yaml`,
      kustomization(
        written.map(([name]) => `${name}.yaml`),
        true,
      ),
    );
    files.set(`${stage}/references.yaml`, HEADER + stringify(REFERENCES, { lineWidth: 0 }));
  }
  files.set("kustomization.yaml", kustomization(used, false));
  return files;
}
