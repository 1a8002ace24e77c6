/** Reads functions, sources and routes from the files of a cluster: knative/functions, knative/sources, knative/routes.yaml. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parse, parseAllDocuments } from "yaml";
import { type KafkaSource, type PingSource, parseSource } from "../sources/delivery.ts";

interface EnvironmentEntry {
  readonly name: string;
  readonly value?: string;
  readonly valueFrom?: {
    readonly secretKeyRef?: { readonly name: string; readonly key: string };
    readonly configMapKeyRef?: { readonly name: string; readonly key: string; readonly optional?: boolean };
  };
}

/** A Knative Service, as far as it concerns a process on this machine. */
interface KnativeService {
  readonly metadata: { readonly name: string };
  readonly spec: {
    readonly template: {
      readonly spec: {
        readonly containers: readonly [
          {
            readonly env: readonly EnvironmentEntry[];
            readonly volumeMounts?: readonly { readonly name: string; readonly mountPath: string }[];
          },
        ];
        readonly volumes?: readonly { readonly name: string; readonly secret: { readonly secretName: string } }[];
      };
    };
  };
}

interface Ingress {
  readonly kind: string;
  readonly spec: {
    readonly rules: readonly {
      readonly http: { readonly paths: readonly { readonly path: string; readonly rewriteHost: string }[] };
    }[];
  };
}

export interface Manifests {
  /** A function's name and its environment. */
  readonly functions: ReadonlyMap<string, Readonly<Record<string, string>>>;
  /** Path prefixes and their functions, the longest prefix first, as in Kourier. */
  readonly routes: readonly { readonly path: string; readonly name: string }[];
  readonly kafkaSources: readonly KafkaSource[];
  readonly pingSources: readonly PingSource[];
}

/** A secret is a folder with one file for each key, as Kubernetes mounts it. */
async function environmentOf(service: KnativeService, secrets: string, config: Readonly<Record<string, string>>) {
  const { containers, volumes = [] } = service.spec.template.spec;
  const [{ env, volumeMounts = [] }] = containers;
  const environment: Record<string, string> = { K_SERVICE: service.metadata.name };
  for (const { name, value, valueFrom } of env) {
    if (value !== undefined) {
      const mount = volumeMounts.find(({ mountPath }) => value.startsWith(`${mountPath}/`));
      const volume = volumes.find((candidate) => candidate.name === mount?.name);
      environment[name] =
        mount && volume ? join(secrets, volume.secret.secretName, value.slice(mount.mountPath.length + 1)) : value;
    } else if (valueFrom?.secretKeyRef !== undefined) {
      const { name: secret, key } = valueFrom.secretKeyRef;
      environment[name] = (await readFile(join(secrets, secret, key), "utf8")).trim();
    } else if (valueFrom?.configMapKeyRef !== undefined) {
      const given = config[valueFrom.configMapKeyRef.key];
      if (given !== undefined) environment[name] = given;
    }
  }
  return environment;
}

async function yamlFiles(folder: string): Promise<[file: string, text: string][]> {
  const files = (await readdir(folder)).filter((file) => file.endsWith(".yaml")).sort();
  return Promise.all(
    files.map(async (file) => [join(folder, file), await readFile(join(folder, file), "utf8")] as const),
  ).then((entries) => entries.map(([file, text]) => [file, text]));
}

/**
 * Reads the manifests.
 * @param folder knative/
 * @param secrets one folder for each secret, one file for each key
 * @param config the content of the ConfigMap `lotus`
 * @param everyone goes into the environment of every function
 */
export async function readManifests(
  folder: string,
  secrets: string,
  config: Readonly<Record<string, string>>,
  everyone: Readonly<Record<string, string>>,
): Promise<Manifests> {
  const functions = new Map<string, Record<string, string>>();
  for (const [, text] of await yamlFiles(join(folder, "functions"))) {
    const service = parse(text) as KnativeService;
    functions.set(service.metadata.name, { ...(await environmentOf(service, secrets, config)), ...everyone });
  }
  const sources = (await yamlFiles(join(folder, "sources"))).map(([file, text]) => parseSource(file, text));
  const ingress = parseAllDocuments(await readFile(join(folder, "routes.yaml"), "utf8"))
    .map((document) => document.toJS() as Ingress)
    .find(({ kind }) => kind === "Ingress");
  const paths = ingress?.spec.rules.flatMap(({ http }) => http.paths) ?? [];
  return {
    functions,
    routes: paths.map(({ path, rewriteHost }) => ({ path, name: rewriteHost.split(".")[0] ?? "" })),
    kafkaSources: sources.filter((source) => source.kind === "KafkaSource"),
    pingSources: sources.filter((source) => source.kind === "PingSource"),
  };
}
