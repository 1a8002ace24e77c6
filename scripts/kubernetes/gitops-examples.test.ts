/** The examples of docs/deploy.md for Argo CD and Flux: fields of the real resources only, and the rendered stages in their order. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as v from "valibot";
import { describe, expect, it } from "vitest";
import { parseAllDocuments } from "yaml";
import { ROOT } from "../project/paths.ts";
import { RENDERED_FOLDER, STAGES } from "./render.ts";

const guide = await readFile(join(ROOT, "docs/deploy.md"), "utf8");
const documents = [...guide.matchAll(/^```yaml\n([\s\S]*?)^```$/gm)].flatMap(([, text = ""]) =>
  parseAllDocuments(text).map((document) => {
    expect(document.errors).toEqual([]);
    return document.toJS() as { readonly kind?: string };
  }),
);

const text = v.pipe(v.string(), v.minLength(1));
const flag = v.optional(v.boolean());
const metadata = v.strictObject({ name: text, namespace: text });
/** A duration of Flux, such as 10m. */
const duration = v.pipe(v.string(), v.regex(/^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$/));

/** The fields of argoproj.io/v1alpha1 Application that an example may use (manifests/crds/application-crd.yaml of Argo CD 3). */
const Application = v.strictObject({
  apiVersion: v.literal("argoproj.io/v1alpha1"),
  kind: v.literal("Application"),
  metadata,
  spec: v.strictObject({
    project: text,
    source: v.strictObject({ repoURL: text, targetRevision: v.optional(text), path: text }),
    destination: v.strictObject({ server: v.optional(text), name: v.optional(text), namespace: text }),
    syncPolicy: v.optional(
      v.strictObject({
        automated: v.optional(v.strictObject({ prune: flag, selfHeal: flag, allowEmpty: flag, enabled: flag })),
        syncOptions: v.optional(v.array(text)),
      }),
    ),
  }),
});

/** The fields of kustomize.toolkit.fluxcd.io/v1 Kustomization that an example may use (the CRD of kustomize-controller 1). */
const Kustomization = v.strictObject({
  apiVersion: v.literal("kustomize.toolkit.fluxcd.io/v1"),
  kind: v.literal("Kustomization"),
  metadata,
  spec: v.strictObject({
    dependsOn: v.optional(v.array(v.strictObject({ name: text, namespace: v.optional(text) }))),
    interval: duration,
    path: text,
    prune: v.boolean(),
    wait: flag,
    timeout: v.optional(duration),
    sourceRef: v.strictObject({
      kind: v.picklist(["GitRepository", "OCIRepository", "Bucket"]),
      name: text,
      namespace: v.optional(text),
    }),
  }),
});

describe("docs/deploy.md", () => {
  it("has an Application of Argo CD for a rendered environment", () => {
    const applications = documents.filter(({ kind }) => kind === "Application");
    expect(applications).toHaveLength(1);
    const { metadata: named, spec } = v.parse(Application, applications[0]);
    expect(spec.source.path).toBe(`${RENDERED_FOLDER}/production`);
    expect(spec.destination.namespace).toBe("lotus-production");
    expect(named.namespace).toBe("argocd");
  });

  it("has a Kustomization of Flux for each stage, and each depends on the former", () => {
    const kustomizations = documents
      .filter(({ kind }) => kind === "Kustomization")
      .map((document) => v.parse(Kustomization, document));
    expect(kustomizations.map(({ spec }) => spec.path)).toEqual(
      STAGES.filter((stage) => stage !== "2-backends").map((stage) => `./${RENDERED_FOLDER}/production/${stage}`),
    );
    for (const [index, { spec }] of kustomizations.entries()) {
      const former = kustomizations[index - 1]?.metadata.name;
      expect(spec.dependsOn).toEqual(former === undefined ? undefined : [{ name: former }]);
      // Without `wait` the next stage would begin before the jobs have ended.
      expect(spec.wait).toBe(true);
    }
  });

  it("names every stage in its list and in its commands", () => {
    for (const stage of STAGES) expect(guide).toContain(`\`${stage}\``);
    const applied = [...guide.matchAll(/kubectl apply -k (\d-[a-z]+)/g)].map(([, stage]) => stage);
    expect(applied).toEqual(STAGES.filter((stage) => stage !== "2-backends"));
  });
});
