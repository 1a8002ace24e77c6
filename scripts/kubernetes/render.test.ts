/** Rendered environments: complete, without secrets, and accepted by kustomize with an overlay. */
import { spawnSync } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { PROGRAM_NAMES } from "../build/image-files.ts";
import { findFunctions } from "../project/functions.ts";
import { backendsOf } from "./backends.ts";
import { readEnvironment } from "./environment.ts";
import type { KubernetesObject } from "./kubectl.ts";
import { architectureFaults, parseLock, updateLock } from "./lock.ts";
import { render, STAGES } from "./render.ts";
import { staleIn, writeInto } from "./render-files.ts";

const all = await findFunctions();
const names = all.map(({ name }) => name);
const DIGEST = `registry.example/lotus@sha256:${"a".repeat(64)}`;
const images = new Map(
  [...names, ...PROGRAM_NAMES].map((name) => [name, { reference: DIGEST, content: "0".repeat(16), commit: "c0ffee" }]),
);

async function renderedFiles(name: string) {
  const environment = await readEnvironment(name, names);
  return render({ all, names, images, environment, backends: backendsOf(environment), version: "1.2.3" });
}

const objectsOf = (files: ReadonlyMap<string, string>) =>
  [...files]
    .filter(([file]) => !/(?:kustomization|references)\.yaml$/.test(file))
    .flatMap(([file, text]) =>
      parseAllDocuments(text).map((document) => ({ file, object: document.toJS() as KubernetesObject })),
    );

const staging = await renderedFiles("staging");
const production = await renderedFiles("production");

describe("a rendered environment", () => {
  it.each([
    ["staging", staging],
    ["production", production],
  ])("%s contains no secret, no placeholder, and no name of the laptop", (_, files) => {
    const text = [...files.values()].join("\n");
    expect(text).not.toMatch(/unbuilt|dev\.local|lotus\.svc|arch\.homework|BEGIN|postgres:\/\/[^/@]*:[^/@]*@/);
    expect(objectsOf(files).map(({ object }) => object.kind)).not.toContain("Secret");
    for (const { object } of objectsOf(files)) {
      if (object.kind !== "Namespace") expect(object.metadata.namespace).toMatch(/^lotus-(staging|production)$/);
      for (const { image } of object.spec?.template?.spec?.containers ?? []) expect(image).toContain("@sha256:");
    }
  });

  it("shares no namespace, host, topic, group or database with another one", () => {
    const values = (files: ReadonlyMap<string, string>) =>
      objectsOf(files).flatMap(({ object: { kind, metadata, spec } }) => {
        if (kind === "Ingress") return spec.rules.flatMap(({ hosts }: { hosts: string[] }) => hosts);
        if (kind === "KafkaSource") return [...spec.topics, spec.consumerGroup];
        return kind === "Namespace" ? [metadata.name] : [];
      }) as string[];
    expect(values(staging).length).toBeGreaterThan(4);
    expect(values(staging).filter((value) => values(production).includes(value))).toEqual([]);
  });

  it("applies in stages: each object has the sync wave of its folder", () => {
    for (const { file, object } of objectsOf(production)) {
      const stage = STAGES.findIndex((name) => file.startsWith(`${name}/`));
      expect(object.metadata.annotations?.["argocd.argoproj.io/sync-wave"]).toBe(String(stage));
    }
    const stageOf = (kind: string, name: string) =>
      objectsOf(production).find(({ object }) => object.kind === kind && object.metadata.name.startsWith(name))?.file;
    expect(stageOf("Job", "migrate")).toMatch(/^3-/);
    expect(stageOf("Job", "topics")).toMatch(/^3-/);
    expect(stageOf("Job", "preflight")).toMatch(/^4-/);
    expect(stageOf("Service", "notification-store")).toMatch(/^5-/);
    expect(stageOf("Service", "order-pay")).toMatch(/^6-/);
    expect(stageOf("KafkaSource", "notification-store")).toMatch(/^7-/);
    expect(stageOf("Ingress", "")).toMatch(/^8-/);
    expect(parse(production.get("kustomization.yaml") ?? "").resources).not.toContain("2-backends");
  });

  it("keeps GitOps tools from removing objects with data", async () => {
    const laptop = await renderedFiles("laptop");
    for (const { object } of objectsOf(laptop).filter(({ object }) =>
      ["Namespace", "StatefulSet"].includes(object.kind),
    ))
      expect(object.metadata.annotations).toMatchObject({
        "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
      });
  });

  it("names a Job by its content", async () => {
    const jobsOf = (files: ReadonlyMap<string, string>) =>
      objectsOf(files).flatMap(({ object }) => (object.kind === "Job" ? [object.metadata.name] : []));
    expect(jobsOf(await renderedFiles("staging"))).toEqual(jobsOf(staging));
    const environment = await readEnvironment("staging", names);
    const other = new Map(
      [...images].map(([name, image]) => [
        name,
        { ...image, reference: DIGEST.replace("a".repeat(64), "b".repeat(64)) },
      ]),
    );
    const changed = await render({
      all,
      names,
      images: other,
      environment,
      backends: backendsOf(environment),
      version: "1.2.3",
    });
    expect(jobsOf(changed).filter((name) => jobsOf(staging).includes(name))).toEqual([]);
  });
});

describe("rendered files in a repository", () => {
  it("are fresh when they were written from the same inputs; other, missing and left-over files are named", async () => {
    const folder = await mkdtemp(join(tmpdir(), "lotus-rendered-"));
    await writeInto(folder, staging);
    expect(await staleIn(folder, staging)).toEqual([]);
    await writeFile(join(folder, "1-platform/platform.yaml"), "edited");
    await rm(join(folder, "8-routes/routes.yaml"));
    await writeFile(join(folder, "6-endpoints/removed.yaml"), "");
    const stale = ["1-platform/platform.yaml", "6-endpoints/removed.yaml", "8-routes/routes.yaml"];
    expect((await staleIn(folder, staging)).sort()).toEqual(stale);
    await writeInto(folder, staging);
    expect(await staleIn(folder, staging)).toEqual([]);
    await rm(folder, { recursive: true });
  });
});

const hasKubectl = spawnSync("kubectl", ["version", "--client"]).status === 0;

describe.skipIf(!hasKubectl)("kustomize", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "lotus-rendered-"));
    for (const [file, text] of production) {
      const path = join(folder, "production", file);
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, text);
    }
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  const build = async (overlay: string): Promise<KubernetesObject[]> => {
    const path = join(folder, "overlay");
    await mkdir(path, { recursive: true });
    await writeFile(join(path, "kustomization.yaml"), `resources: [../production]\n${overlay}`);
    const { status, stdout, stderr } = spawnSync("kubectl", ["kustomize", path], { encoding: "utf8" });
    expect(stderr).toBe("");
    expect(status).toBe(0);
    return parseAllDocuments(stdout).map((document) => document.toJS() as KubernetesObject);
  };
  const payOf = (objects: readonly KubernetesObject[]) =>
    objects.find(
      ({ apiVersion, metadata }) => apiVersion === "serving.knative.dev/v1" && metadata.name.endsWith("order-pay"),
    );

  it("accepts the folder, and an overlay with another image and another scale", async () => {
    const objects =
      await build(`images: [{ name: registry.example/lotus, newName: mirror.example/lotus, digest: "sha256:${"b".repeat(64)}" }]
patches:
  - target: { kind: Service, group: serving.knative.dev, name: order-pay }
    patch: |
      - { op: replace, path: /spec/template/metadata/annotations/autoscaling.knative.dev~1min-scale, value: "4" }
`);
    const { template } = payOf(objects)?.spec ?? {};
    expect(template.spec.containers[0].image).toBe(`mirror.example/lotus@sha256:${"b".repeat(64)}`);
    expect(template.metadata.annotations["autoscaling.knative.dev/min-scale"]).toBe("4");
  });

  it("renames references of Services and sources with their objects", async () => {
    const objects = await build("namePrefix: blue-\n");
    const configuration = objects.find(({ kind }) => kind === "ConfigMap")?.metadata.name;
    expect(configuration).toBe("blue-lotus");
    const { env } = payOf(objects)?.spec.template.spec.containers[0] ?? {};
    const named = env.flatMap(
      ({ valueFrom }: { valueFrom?: { configMapKeyRef?: { name: string } } }) => valueFrom?.configMapKeyRef?.name ?? [],
    );
    expect(new Set(named)).toEqual(new Set([configuration]));
    const source = objects.find(({ kind }) => kind === "KafkaSource");
    expect(source?.spec.sink.ref.name).toBe("blue-billing-open-account");
    expect(source?.spec.delivery.deadLetterSink.ref.name).toBe("blue-events-dead-letter");
  });
});

describe("the lock file", () => {
  const BOTH = ["amd64", "arm64"];
  const next = DIGEST.replace("a".repeat(64), "b".repeat(64));
  const former = new Map([
    ["order-pay", { reference: DIGEST, content: "1".repeat(16), commit: "old", architectures: BOTH }],
    ["order-list", { reference: DIGEST, content: "2".repeat(16), commit: "old", architectures: BOTH }],
    ["order-get", { reference: DIGEST, content: "4".repeat(16), commit: "old", architectures: ["amd64"] }],
  ]);

  it("keeps the image of a function whose content is the same, unless it lacks an architecture", () => {
    const contents = new Map([
      ["order-pay", "1".repeat(16)],
      ["order-list", "3".repeat(16)],
      ["order-get", "4".repeat(16)],
    ]);
    const lock = updateLock(former, next, contents, "new", BOTH);
    const built = { reference: next, commit: "new", architectures: BOTH };
    expect(lock.get("order-pay")).toEqual(former.get("order-pay"));
    expect(lock.get("order-list")).toEqual({ ...built, content: "3".repeat(16) });
    expect(lock.get("order-get")).toEqual({ ...built, content: "4".repeat(16) });
  });

  it("is compared with the architectures of the nodes", () => {
    expect(architectureFaults(["amd64"], former)).toEqual([]);
    const [fault, ...more] = architectureFaults(BOTH, former);
    expect(more).toEqual([]);
    expect(fault).toBe(
      "The cluster has nodes of the architecture arm64, and the locked images of order-get do not have it. " +
        "Build them for it: npx lotus images --push REPOSITORY --platform amd64,arm64",
    );
  });

  it("refuses an image without a digest", () => {
    const text = "images: { order-pay: { image: registry.example/lotus:latest, content: 0123456789abcdef } }";
    expect(() => parseLock(text)).toThrow("images.order-pay.image must be repository@sha256");
  });
});
