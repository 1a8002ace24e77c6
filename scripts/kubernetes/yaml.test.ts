/** Every YAML of knative/ is well formed, fits restricted namespaces, and names only existing objects. */
import { describe, expect, it } from "vitest";
import { connectionsOf } from "../database/connections.ts";
import { SERVICES } from "../database/sql.ts";
import { TARGET_DEFAULT } from "../generate/knative.ts";
import { KAFKA_VERSION } from "../kafka/java.ts";
import { findFunctions } from "../project/functions.ts";
import { backendsOf, configuration } from "./backends.ts";
import { LAPTOP, readEnvironment } from "./environment.ts";
import { type KubernetesObject, readDocuments, yamlFiles } from "./kubectl.ts";
import { budgetIn } from "./plan.ts";
import { BACKEND_MEBIBYTES, RESERVE_MEBIBYTES, RESERVED_CONNECTIONS } from "./postgres-capacity.ts";

const NAMESPACE = TARGET_DEFAULT.namespace;

const FOLDERS = ["knative", "knative/functions", "knative/sources", "knative/platform"];
const PLATFORM_FOLDERS = ["kafka", "kafka-3", "jobs"].map((name) => `knative/platform/${name}`);

/** The fields of an object and of a Knative Service. Another field is a misspelling. */
const TOP_FIELDS = ["apiVersion", "automountServiceAccountToken", "data", "kind", "metadata", "spec"];
const REVISION_FIELDS = [
  "automountServiceAccountToken",
  "containerConcurrency",
  "containers",
  "enableServiceLinks",
  "serviceAccountName",
  "timeoutSeconds",
  "volumes",
];
const CONTAINER_FIELDS = [
  "args",
  "env",
  "image",
  "imagePullPolicy",
  "ports",
  "resources",
  "securityContext",
  "volumeMounts",
];

/** The Secrets of scripts/secrets/cluster.ts. */
const SECRETS = new Map([
  ["database-admin", ["url", "password"]],
  ["database-superuser", ["password"]],
  ...SERVICES.map((role): [string, string[]] => [`database-${role}`, ["url", "password"]]),
  ["public-keys", ["jwks.json"]],
  ["signing-key", ["key.json"]],
]);

const all = await findFunctions();
const laptop = await readEnvironment(
  LAPTOP,
  all.map(({ name }) => name),
);
const files = (await Promise.all([...FOLDERS, ...PLATFORM_FOLDERS].map(yamlFiles))).flat();
const documents = (
  await Promise.all(files.map(async (file) => (await readDocuments(file)).map((document) => ({ file, document }))))
).flat();
const ofKind = (...kinds: string[]) => documents.filter(({ document }) => kinds.includes(document.kind));
const functions = ofKind("Service").filter(({ document }) => document.apiVersion === "serving.knative.dev/v1");
const functionNames = functions.map(({ document }) => document.metadata.name);
const withPods = [...functions, ...ofKind("Deployment", "StatefulSet", "Job")];

/** Every object below a value that has this field. */
// biome-ignore lint/suspicious/noExplicitAny: any YAML
function below(value: any, field: string): any[] {
  if (typeof value !== "object" || value === null) return [];
  const own = field in value ? [value[field]] : [];
  return [...own, ...Object.values(value).flatMap((inner) => below(inner, field))];
}

const podLabels = (document: KubernetesObject): Record<string, string> => document.spec.template.metadata.labels;
const matches = (labels: Record<string, string>, selector: Record<string, string>) =>
  Object.entries(selector).every(([name, value]) => labels[name] === value);

describe("all of it", () => {
  it.each(documents)(
    "$file, $document.kind $document.metadata.name: its fields, namespace and name",
    ({ document }) => {
      expect(TOP_FIELDS).toEqual(expect.arrayContaining(Object.keys(document)));
      expect(document.metadata.name).toMatch(/^[a-z][a-z0-9-]*$/);
      expect(document.metadata.namespace).toBe(document.kind === "Namespace" ? undefined : NAMESPACE);
    },
  );

  it("has one object for each kind and name, except the two ways to run Kafka", () => {
    const identities = documents
      .filter(({ file }) => !file.includes("kafka-3/"))
      .map(({ document }) => `${document.apiVersion} ${document.kind} ${document.metadata.name}`);
    expect(identities.filter((identity, index) => identities.indexOf(identity) !== index)).toEqual([]);
  });

  it("names only secrets, and keys in them, that the deployment makes", () => {
    for (const { document } of withPods) {
      for (const { name, key } of below(document, "secretKeyRef")) expect(SECRETS.get(name)).toContain(key);
      for (const name of below(document, "secretName")) expect([...SECRETS.keys()]).toContain(name);
    }
  });

  it("runs the Kafka that the tests run", () => {
    const images = ofKind("StatefulSet").map(({ document }) => document.spec.template.spec.containers[0].image);
    expect(images.filter((image) => image.includes("kafka"))).toEqual(
      Array(2).fill(`docker.io/apache/kafka:${KAFKA_VERSION}`),
    );
  });

  it("names only keys of the configuration", () => {
    const { data } = configuration({ ...backendsOf(laptop), cors: "https://shop.example" }, laptop);
    for (const { document } of withPods) {
      for (const { name, key } of below(document, "configMapKeyRef")) {
        expect(name).toBe("lotus");
        expect(Object.keys(data)).toContain(key);
      }
    }
  });
});

describe("pods", () => {
  it.each(withPods)("$file: restricted, with requests, without service links, with a fixed image", ({ document }) => {
    const { spec } = document.spec.template;
    expect(spec.enableServiceLinks).toBe(false);
    expect(spec.automountServiceAccountToken).toBe(false);
    for (const container of spec.containers) {
      const { securityContext: own = {}, image, resources } = container;
      const context = { ...spec.securityContext, ...own };
      expect(context).toMatchObject({ runAsNonRoot: true, allowPrivilegeEscalation: false });
      expect(context).toMatchObject({ capabilities: { drop: ["ALL"] }, seccompProfile: { type: "RuntimeDefault" } });
      expect(image).toMatch(/^[a-z0-9./-]+:[\w.-]+$/);
      expect(image).not.toMatch(/:(?:latest|\d+)$/);
      expect(container.imagePullPolicy).toBe("IfNotPresent");
      expect(Object.keys(resources.requests).sort()).toEqual(["cpu", "memory"]);
      expect(resources.limits.memory).toBeDefined();
    }
  });

  it.each(withPods)("$file: mounts each volume that it defines", ({ document }) => {
    const { containers, volumes = [] } = document.spec.template.spec;
    const claims = document.spec.volumeClaimTemplates ?? [];
    const there = [...volumes, ...claims.map(({ metadata }: KubernetesObject) => metadata)].map(({ name }) => name);
    expect(
      below(containers, "volumeMounts")
        .flat()
        .map(({ name }) => name)
        .sort(),
    ).toEqual(there.sort());
  });
});

const postgresContainer = ofKind("StatefulSet").find(({ document }) => document.metadata.name === "postgres")?.document
  .spec.template.spec.containers[0];
const postgresSetting = (name: string) =>
  Number(new RegExp(`${name}=(\\d+)`).exec(JSON.stringify(postgresContainer.args))?.[1]);

describe("functions", () => {
  it.each(functions)("$document.metadata.name has fields of Knative, and scales to zero", ({ document }) => {
    const { metadata, spec } = document.spec.template;
    expect(REVISION_FIELDS).toEqual(expect.arrayContaining(Object.keys(spec)));
    expect(spec.containers).toHaveLength(1);
    expect(CONTAINER_FIELDS).toEqual(expect.arrayContaining(Object.keys(spec.containers[0])));
    // Below 30 s queue-proxy would be killed before it has drained.
    expect(spec.timeoutSeconds).toBeGreaterThan(30);
    expect(metadata.annotations["autoscaling.knative.dev/min-scale"]).toBe("0");
    expect(document.metadata.labels).toEqual({ "networking.knative.dev/visibility": "cluster-local" });
  });

  it.each(functions)("$document.metadata.name has the database of its service only", ({ document }) => {
    const service = podLabels(document)["lotus/service"];
    const secrets = [...below(document, "secretName"), ...below(document, "secretKeyRef").map(({ name }) => name)];
    const databases = new Set(secrets.filter((name: string) => name.startsWith("database-")));
    expect([...databases]).toEqual(podLabels(document)["lotus/database"] === "true" ? [`database-${service}`] : []);
  });

  it("open no more connections at full scale during a rollout than the cluster's Postgres allows", () => {
    const needed = connectionsOf(budgetIn({ all, environment: laptop, backends: backendsOf(laptop) }));
    const advice = `Raise max_connections in knative/platform/postgres.yaml to ${needed + RESERVED_CONNECTIONS}, and its memory.`;
    expect(needed + RESERVED_CONNECTIONS, advice).toBeLessThanOrEqual(postgresSetting("max_connections"));
  });

  it("leave the cluster's Postgres enough memory for each connection", () => {
    const mebibytes =
      postgresSetting("shared_buffers") + postgresSetting("max_connections") * BACKEND_MEBIBYTES + RESERVE_MEBIBYTES;
    const [, gibibytes] = /^(\d+)Gi$/.exec(postgresContainer.resources.limits.memory) ?? [];
    expect(mebibytes).toBeLessThanOrEqual(Number(gibibytes) * 1024);
  });

  it("only login has the private key", () => {
    const given = functions.filter(({ document }) => below(document, "secretName").includes("signing-key"));
    expect(given.map(({ document }) => document.metadata.name)).toEqual(["profile-login"]);
  });
});

describe("the cluster's Postgres", () => {
  it("has an owner that is not a superuser, and no other pod receives the superuser's password", () => {
    const users = documents.filter(({ document }) =>
      below(document, "secretKeyRef").some(({ name }) => name === "database-superuser"),
    );
    expect(users.map(({ document }) => [document.kind, document.metadata.name])).toEqual([["StatefulSet", "postgres"]]);
    expect(
      below(users[0]?.document, "env")
        .flat()
        .map(({ name }) => name),
    ).not.toContain("POSTGRES_USER");
    const [firstStart] = ofKind("ConfigMap").filter(
      ({ document }) => document.metadata.name === "postgres-first-start",
    );
    expect(firstStart?.document.data["owner.sql"]).toMatch(/^create role lotus login createrole createdb password /m);
  });
});

describe("sources", () => {
  it.each(ofKind("KafkaSource"))(
    "$file keeps its offsets, retries, and has a dead letter sink",
    ({ document: { spec } }) => {
      expect(Object.keys(spec).sort()).toEqual(
        [
          "bootstrapServers",
          "consumerGroup",
          "consumers",
          "delivery",
          "initialOffset",
          "ordering",
          "sink",
          "topics",
        ].sort(),
      );
      expect(spec).toMatchObject({ initialOffset: "earliest", ordering: "unordered", consumers: 1 });
      // KafkaSource ignores its defaults when one field of the block is set.
      expect(Object.keys(spec.delivery).sort()).toEqual([
        "backoffDelay",
        "backoffPolicy",
        "deadLetterSink",
        "retry",
        "timeout",
      ]);
      expect(functionNames).toContain(spec.delivery.deadLetterSink.ref.name);
    },
  );

  it.each(ofKind("KafkaSource", "PingSource"))("$file leads to a function", ({ document: { spec } }) => {
    expect(spec.sink.ref).toMatchObject({ apiVersion: "serving.knative.dev/v1", kind: "Service" });
    expect(functionNames).toContain(spec.sink.ref.name);
  });
});

describe("routes", () => {
  const [ingress] = ofKind("Ingress").map(({ document }) => document);
  const paths: { path: string; rewriteHost: string; splits: { serviceName: string; percent: number }[] }[] =
    ingress?.spec.rules[0].http.paths;

  it("are of Kourier's class, for one host", () => {
    const annotation = ingress?.metadata.annotations?.["networking.knative.dev/ingress.class"];
    expect(annotation).toBe("kourier.ingress.networking.knative.dev");
    expect(ingress?.spec.rules.map(({ hosts }: { hosts: string[] }) => hosts)).toEqual([["arch.homework"]]);
  });

  it("are ordered longest first, with a path for Kourier's probe", () => {
    const lengths = paths.map(({ path }) => path.length);
    expect(lengths).toEqual([...lengths].sort((a, b) => b - a));
    expect(paths.map(({ path }) => path)).toContain("/healthz");
  });

  it("lead through the local gateway to functions", () => {
    const services = ofKind("Service").map(({ document }) => document.metadata.name);
    for (const { rewriteHost, splits } of paths) {
      expect(functionNames.map((name) => `${name}.${NAMESPACE}.svc.cluster.local`)).toContain(rewriteHost);
      expect(splits).toHaveLength(1);
      for (const { serviceName } of splits) expect(services).toContain(serviceName);
    }
  });
});

describe("selectors", () => {
  const pods = withPods.map(({ document }) => document);

  it.each(ofKind("Service").filter(({ document }) => document.spec.selector))(
    "$file: the Service $document.metadata.name finds pods and ports",
    ({ document }) => {
      const found = pods.filter((pod) => matches(podLabels(pod), document.spec.selector));
      expect(found.length).toBeGreaterThan(0);
      const ports = below(found, "ports")
        .flat()
        .map(({ name }) => name);
      for (const { targetPort } of document.spec.ports) expect(ports).toContain(targetPort);
    },
  );

  it.each(ofKind("NetworkPolicy"))(
    "$file: every pod that the policy $document.metadata.name selects exists",
    ({ document }) => {
      for (const selector of below(document.spec, "podSelector")) {
        const wanted = selector.matchLabels ?? {};
        expect(pods.some((pod) => matches(podLabels(pod), wanted))).toBe(true);
      }
    },
  );
});
