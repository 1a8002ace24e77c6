/** TLS and logins of a Kafka outside the cluster: for functions, jobs and KafkaSource. */
import type { KubernetesObject } from "./kubectl.ts";

export const MECHANISMS = ["plain", "scram-sha-256", "scram-sha-512"] as const;
export type Mechanism = (typeof MECHANISMS)[number];

/** The secret part, from the options of `lotus deploy`. The values go into the Secret `kafka` only. */
export interface KafkaCredentials {
  readonly tls: boolean;
  /** PEM of an authority that signs the brokers' certificates, when it is not a public one. */
  readonly authority: string | undefined;
  /** PEM of the client's certificate and key, for brokers that identify clients by certificates. */
  readonly client: { readonly certificate: string; readonly key: string } | undefined;
  readonly user: { readonly name: string; readonly password: string; readonly mechanism: Mechanism } | undefined;
}

/** The public part, which the ConfigMap `lotus` keeps for the next deployment. */
export interface KafkaSecurity {
  readonly tls: boolean;
  readonly authority: boolean;
  readonly clientCertificate: boolean;
  readonly mechanism: Mechanism | undefined;
}

const SECRET = "kafka";
const FOLDER = "/etc/lotus/kafka";

/** Returns the public part of credentials. Undefined: the brokers accept every client without TLS. */
export function securityOf({ tls, authority, client, user }: KafkaCredentials): KafkaSecurity | undefined {
  if (!tls && user === undefined) return undefined;
  return {
    tls,
    authority: authority !== undefined,
    clientCertificate: client !== undefined,
    mechanism: user?.mechanism,
  };
}

/** Writes the public part as words, such as "tls authority scram-sha-512". */
export function writeSecurity({ tls, authority, clientCertificate, mechanism }: KafkaSecurity): string {
  const words = [tls && "tls", authority && "authority", clientCertificate && "client-certificate", mechanism];
  return words.filter((word) => word).join(" ");
}

/** Reads the words of `writeSecurity`. */
export function readSecurity(written: string | undefined): KafkaSecurity | undefined {
  if (written === undefined) return undefined;
  const words = written.split(" ");
  return {
    tls: words.includes("tls"),
    authority: words.includes("authority"),
    clientCertificate: words.includes("client-certificate"),
    mechanism: MECHANISMS.find((name) => words.includes(name)),
  };
}

/** Returns the keys and values of the Secret `kafka`. */
export function secretOf({ authority, client, user }: KafkaCredentials): Record<string, string> {
  return {
    ...(authority !== undefined && { "ca.crt": authority }),
    ...(client && { "user.crt": client.certificate, "user.key": client.key }),
    ...(user && { user: user.name, password: user.password, "sasl.mechanism": user.mechanism.toUpperCase() }),
  };
}

const fromSecret = (key: string) => ({ secretKeyRef: { name: SECRET, key } });

/**
 * Adds variables and files for a secured Kafka to a pod's template. User and password are files, so that a running process
 * reads a new pair together. Changes the object.
 */
export function secureClient(object: KubernetesObject, security: KafkaSecurity): void {
  const { tls, authority, clientCertificate, mechanism } = security;
  const { spec } = object.spec.template;
  const [container] = spec.containers;
  const variables: Record<string, string> = {
    ...(tls && { KAFKA_TLS: "true" }),
    ...(authority && { KAFKA_TLS_CA_FILE: `${FOLDER}/ca.crt` }),
    ...(clientCertificate && {
      KAFKA_TLS_CERTIFICATE_FILE: `${FOLDER}/user.crt`,
      KAFKA_TLS_KEY_FILE: `${FOLDER}/user.key`,
    }),
    ...(mechanism !== undefined && {
      KAFKA_SASL_MECHANISM: mechanism,
      KAFKA_USERNAME_FILE: `${FOLDER}/user`,
      KAFKA_PASSWORD_FILE: `${FOLDER}/password`,
    }),
  };
  container.env.push(...Object.entries(variables).map(([name, value]) => ({ name, value })));
  if (!authority && !clientCertificate && mechanism === undefined) return;
  container.volumeMounts = [...(container.volumeMounts ?? []), { name: SECRET, mountPath: FOLDER, readOnly: true }];
  spec.volumes = [...(spec.volumes ?? []), { name: SECRET, secret: { secretName: SECRET } }];
}

/** Adds the same to a KafkaSource. Changes the object. */
export function secureSource(source: KubernetesObject, security: KafkaSecurity): void {
  const { tls, authority, clientCertificate, mechanism } = security;
  source.spec.net = {
    ...(tls && {
      tls: {
        enable: true,
        ...(authority && { caCert: fromSecret("ca.crt") }),
        ...(clientCertificate && { cert: fromSecret("user.crt"), key: fromSecret("user.key") }),
      },
    }),
    ...(mechanism !== undefined && {
      sasl: {
        enable: true,
        user: fromSecret("user"),
        password: fromSecret("password"),
        type: fromSecret("sasl.mechanism"),
      },
    }),
  };
}
