/** Knative manifests of the functions: Services, sources and routes. */
import type { Scale } from "#kernel/endpoint";
import { POOL_CONNECTIONS_MAX } from "#kernel/limits";
import { usesOf } from "#kernel/server";
import { PODS_MAX_DEFAULT } from "../database/connections.ts";
import type { LotusFunction } from "../project/functions.ts";

/** Where the objects of an environment are. */
export interface Target {
  readonly namespace: string;
  readonly host: string;
  readonly clusterDomain: string;
  /** Kourier's gateway for calls inside the cluster. */
  readonly ingress: { readonly namespace: string; readonly service: string; readonly trustedProxies: number };
  /** The Secret of the host's certificate. Undefined: plain HTTP. */
  readonly certificate?: string;
}

/** The target of the generated files, which the local run and the environment `laptop` use. */
export const TARGET_DEFAULT: Target = {
  namespace: "lotus",
  host: "arch.homework",
  clusterDomain: "cluster.local",
  ingress: { namespace: "kourier-system", service: "kourier-internal", trustedProxies: 1 },
};

/** Every route leads to Kourier's gateway for calls inside the cluster; only the host differs (decision 0011). */
const GATEWAY = "kn-local-gateway";
/** `npx lotus deploy` replaces this tag by the hash of the image. */
const UNBUILT = "unbuilt";

/** The default scale of a function. */
const SCALE_DEFAULT = {
  target: 50,
  limit: 0,
  // Starting a pod takes about a second, and a pod that is in use stays.
  minPods: 0,
  // The pods of all functions share the connections of one Postgres.
  maxPods: PODS_MAX_DEFAULT,
  connections: POOL_CONNECTIONS_MAX,
  // A process without requests uses about 60 MiB.
  memoryMebibytes: 192,
  // Less than a whole core makes cold starts slower.
  cpu: "1",
} as const satisfies Scale;
/** A source has about 50 events in flight. 50 events of 1 MB use 186 MiB, and 100 of 1.2 MB use 254 MiB. */
const TRIGGER_MEMORY_MEBIBYTES = 384;
/** One source calls a scheduled function once a minute or less often. */
const SCHEDULED: Scale = { maxPods: 1, connections: 2 };

/** A scale in an environment file or in a description. */
type PartialScale = { readonly [Field in keyof Scale]?: Scale[Field] | undefined };

/** The scale of a function: the defaults, then its description, then the environment's values in their order. */
export function scaleOf(fn: LotusFunction, ...environment: readonly PartialScale[]): Required<Scale> {
  const given: PartialScale[] = [
    fn.kind === "subscriber" ? { memoryMebibytes: TRIGGER_MEMORY_MEBIBYTES } : {},
    "schedule" in fn.description ? SCHEDULED : {},
    fn.description.scale ?? {},
    ...environment,
  ];
  return Object.assign({}, SCALE_DEFAULT, ...given.map(definedOf)) as Required<Scale>;
}

const definedOf = (scale: PartialScale) =>
  Object.fromEntries(Object.entries(scale).filter(([, value]) => value !== undefined));

export const HEADER =
  "# Written by `npm run manifests` from the functions' descriptions. Change those, not this file.\n";
export const UNBUILT_NOTE = `# \`npx lotus deploy\` replaces the tag \`${UNBUILT}\`. scripts/generate/knative.ts contains the reasons.\n`;

/** Returns the variables of a function, and the secrets that it mounts. */
function environmentOf(fn: LotusFunction, { connections }: Required<Scale>, { ingress }: Target) {
  const uses = usesOf(fn.description);
  const env: object[] = [];
  const mounts: { name: string; secret: string; path: string }[] = [];
  if (uses.includes("database")) {
    env.push(
      { name: "DATABASE_URL", valueFrom: { secretKeyRef: { name: `database-${fn.service}`, key: "url" } } },
      { name: "DATABASE_PASSWORD_FILE", value: "/etc/lotus/database/password" },
      {
        name: "DATABASE_PREPARE",
        valueFrom: { configMapKeyRef: { name: "lotus", key: "database-prepare" } },
      },
      connections === SCALE_DEFAULT.connections
        ? { name: "DATABASE_POOL", valueFrom: { configMapKeyRef: { name: "lotus", key: "database-pool" } } }
        : { name: "DATABASE_POOL", value: String(connections) },
    );
    mounts.push({ name: "database", secret: `database-${fn.service}`, path: "/etc/lotus/database" });
  }
  if (uses.includes("public-keys")) {
    env.push({ name: "JWKS_FILE", value: "/etc/lotus/public-keys/jwks.json" });
    mounts.push({ name: "public-keys", secret: "public-keys", path: "/etc/lotus/public-keys" });
  }
  if (uses.includes("signing-key")) {
    env.push({ name: "SIGNING_KEY_FILE", value: "/etc/lotus/signing-key/key.json" });
    mounts.push({ name: "signing-key", secret: "signing-key", path: "/etc/lotus/signing-key" });
  }
  if (uses.includes("database")) {
    for (const name of ["KAFKA_BROKERS", "KAFKA_PREFIX"]) {
      const key = name.toLowerCase().replace("_", "-");
      env.push({ name, valueFrom: { configMapKeyRef: { name: "lotus", key } } });
    }
  }
  // Kourier appends the client's address to X-Forwarded-For.
  if (fn.kind === "endpoint")
    env.push(
      { name: "TRUSTED_PROXIES", value: String(ingress.trustedProxies) },
      {
        name: "CORS_ORIGINS",
        valueFrom: { configMapKeyRef: { name: "lotus", key: "cors-origins", optional: true } },
      },
    );
  return { env, mounts };
}

/** Returns the Knative Service of a function. */
export function knativeService(
  fn: LotusFunction,
  target: Target = TARGET_DEFAULT,
  scale: Required<Scale> = scaleOf(fn),
): object {
  const { env, mounts } = environmentOf(fn, scale, target);
  return {
    apiVersion: "serving.knative.dev/v1",
    kind: "Service",
    metadata: {
      name: fn.name,
      namespace: target.namespace,
      // routes.yaml is the only gateway from outside, also for endpoints.
      labels: { "networking.knative.dev/visibility": "cluster-local" },
    },
    spec: {
      template: {
        metadata: {
          // Network policies select pods by these labels.
          labels: {
            "app.kubernetes.io/part-of": "lotus",
            "app.kubernetes.io/component": "function",
            "lotus/service": fn.service,
            ...(usesOf(fn.description).includes("database") && { "lotus/database": "true" }),
          },
          annotations: {
            "autoscaling.knative.dev/min-scale": String(scale.minPods),
            "autoscaling.knative.dev/max-scale": String(scale.maxPods),
            "autoscaling.knative.dev/target": String(scale.target),
            "autoscaling.knative.dev/target-burst-capacity": "0",
            // With the default window of a minute a function that runs every minute would never scale to zero in time.
            ...("schedule" in fn.description && { "autoscaling.knative.dev/window": "10s" }),
          },
        },
        spec: {
          ...(scale.limit > 0 && { containerConcurrency: scale.limit }),
          timeoutSeconds: 60,
          enableServiceLinks: false,
          automountServiceAccountToken: false,
          serviceAccountName: "lotus",
          containers: [
            {
              image: `dev.local/lotus:${UNBUILT}`,
              imagePullPolicy: "IfNotPresent",
              args: [`/app/${fn.name}/function.cjs`],
              ports: [{ containerPort: 8080 }],
              env,
              resources: {
                requests: { cpu: "25m", memory: "64Mi" },
                limits: { cpu: scale.cpu, memory: `${scale.memoryMebibytes}Mi` },
              },
              // The image names the user, so that a platform such as OpenShift may choose another one.
              securityContext: {
                runAsNonRoot: true,
                allowPrivilegeEscalation: false,
                readOnlyRootFilesystem: true,
                capabilities: { drop: ["ALL"] },
                seccompProfile: { type: "RuntimeDefault" },
              },
              ...(mounts.length > 0 && {
                volumeMounts: mounts.map(({ name, path }) => ({ name, mountPath: path, readOnly: true })),
              }),
            },
          ],
          ...(mounts.length > 0 && {
            volumes: mounts.map(({ name, secret }) => ({ name, secret: { secretName: secret } })),
          }),
        },
      },
    },
  };
}

const knativeSink = (name: string) => ({ ref: { apiVersion: "serving.knative.dev/v1", kind: "Service", name } });

/** Returns the KafkaSource or PingSource of a trigger; undefined for other functions. */
export function source(
  fn: LotusFunction,
  deadLetterSink: string,
  { namespace, clusterDomain }: Target = TARGET_DEFAULT,
): object | undefined {
  if (fn.kind !== "subscriber") return undefined;
  const metadata = { name: fn.name, namespace };
  if ("topic" in fn.description) {
    return {
      apiVersion: "sources.knative.dev/v1",
      kind: "KafkaSource",
      metadata,
      spec: {
        bootstrapServers: [`kafka.${namespace}.svc.${clusterDomain}:9092`],
        topics: [fn.description.topic],
        // The group of a source cannot change. A new source with the same group continues at its offsets.
        consumerGroup: fn.name,
        consumers: 1,
        initialOffset: "earliest",
        ordering: "unordered",
        // KafkaSource replaces all defaults of this block when one field is set. The waits are 0.4 to 6.4 s: twice the delay first.
        delivery: {
          retry: 5,
          backoffPolicy: "exponential",
          backoffDelay: "PT0.2S",
          timeout: "PT30S",
          deadLetterSink: knativeSink(deadLetterSink),
        },
        sink: knativeSink(fn.name),
      },
    };
  }
  if ("schedule" in fn.description) {
    return {
      apiVersion: "sources.knative.dev/v1",
      kind: "PingSource",
      metadata,
      spec: {
        schedule: fn.description.schedule,
        contentType: "application/json",
        data: "{}",
        sink: knativeSink(fn.name),
      },
    };
  }
  return undefined;
}

/** Returns the Ingress of the endpoints, and the Service that leads to Kourier's gateway. */
export function routes(functions: readonly LotusFunction[], target: Target = TARGET_DEFAULT): object[] {
  const { namespace, host, clusterDomain, ingress, certificate } = target;
  const endpoints = functions.filter((fn) => fn.kind === "endpoint");
  const route = (path: string, name: string) => ({
    path,
    rewriteHost: `${name}.${namespace}.svc.${clusterDomain}`,
    appendHeaders: { "K-Original-Host": host },
    splits: [{ serviceName: GATEWAY, serviceNamespace: namespace, servicePort: 80, percent: 100 }],
  });
  const paths = endpoints.map(({ path, name }) => route(path, name));
  // Kourier probes /healthz. queue-proxy or the activator answers, so the probe starts no pod.
  const probed = endpoints.find(({ name }) => name === "order-subscriptions") ?? endpoints[0];
  if (probed !== undefined) paths.push(route("/healthz", probed.name));
  paths.sort((a, b) => b.path.length - a.path.length || a.path.localeCompare(b.path));
  return [
    {
      apiVersion: "v1",
      kind: "Service",
      metadata: { name: GATEWAY, namespace },
      spec: {
        type: "ExternalName",
        externalName: `${ingress.service}.${ingress.namespace}.svc.${clusterDomain}`,
        ports: [{ name: "http", port: 80, targetPort: 80 }],
      },
    },
    {
      apiVersion: "networking.internal.knative.dev/v1alpha1",
      kind: "Ingress",
      metadata: {
        name: host.replaceAll(".", "-"),
        namespace,
        annotations: { "networking.knative.dev/ingress.class": "kourier.ingress.networking.knative.dev" },
      },
      spec: {
        httpOption: certificate === undefined ? "Enabled" : "Redirected",
        ...(certificate !== undefined && {
          tls: [{ hosts: [host], secretName: certificate, secretNamespace: namespace }],
        }),
        rules: [{ hosts: [host], visibility: "ExternalIP", http: { paths } }],
      },
    },
  ];
}
