/** A Kafka outside the cluster that wants TLS, or to know who calls: given to functions, to the topics job and to KafkaSource. */
import type { KubernetesObject } from "./kubectl.ts";

/** The options of `lotus deploy`. The values go into a Secret only. */
export interface KafkaCredentials {
  readonly tls: boolean;
  /** PEM of an authority that signs the brokers' certificates, when it is not a public one. */
  readonly authority: string | undefined;
  readonly user: { readonly name: string; readonly password: string; readonly mechanism: Mechanism } | undefined;
}

export const MECHANISMS = ["plain", "scram-sha-256", "scram-sha-512"] as const;
export type Mechanism = (typeof MECHANISMS)[number];

/** The same without its secrets: what the ConfigMap keeps for the next deployment. */
export interface KafkaSecurity {
  readonly tls: boolean;
  readonly authority: boolean;
  readonly mechanism: Mechanism | undefined;
}

const SECRET = "kafka";
const FOLDER = "/etc/lotus/kafka";

/** What is kept of the credentials in the open. Undefined: a Kafka that takes everyone. */
export function securityOf(credentials: KafkaCredentials): KafkaSecurity | undefined {
  const { tls, authority, user } = credentials;
  if (!tls && user === undefined) return undefined;
  return { tls, authority: authority !== undefined, mechanism: user?.mechanism };
}

/** The Secret's values, by the keys that KafkaSource's references name. */
export function secretOf({ authority, user }: KafkaCredentials): Record<string, string> {
  return {
    ...(authority !== undefined && { "ca.crt": authority }),
    ...(user && { user: user.name, password: user.password, "sasl.mechanism": user.mechanism.toUpperCase() }),
  };
}

const fromSecret = (key: string) => ({ secretKeyRef: { name: SECRET, key } });

/** Gives a pod's template what a client of a secured Kafka needs. Changes the object that it is given. */
export function secureClient(object: KubernetesObject, { tls, authority, mechanism }: KafkaSecurity): void {
  const { spec } = object.spec.template;
  const [container] = spec.containers;
  container.env.push(
    ...(tls ? [{ name: "KAFKA_TLS", value: "true" }] : []),
    ...(authority ? [{ name: "KAFKA_TLS_CA_FILE", value: `${FOLDER}/ca.crt` }] : []),
  );
  if (mechanism !== undefined) {
    container.env.push(
      { name: "KAFKA_SASL_MECHANISM", value: mechanism },
      { name: "KAFKA_USERNAME", valueFrom: fromSecret("user") },
      { name: "KAFKA_PASSWORD_FILE", value: `${FOLDER}/password` },
    );
  }
  if (!authority && mechanism === undefined) return;
  container.volumeMounts = [...(container.volumeMounts ?? []), { name: SECRET, mountPath: FOLDER, readOnly: true }];
  spec.volumes = [...(spec.volumes ?? []), { name: SECRET, secret: { secretName: SECRET } }];
}

/** Tells a KafkaSource the same. Changes the object that it is given. */
export function secureSource(source: KubernetesObject, { tls, authority, mechanism }: KafkaSecurity): void {
  source.spec.net = {
    ...(tls && { tls: { enable: true, ...(authority && { caCert: fromSecret("ca.crt") }) } }),
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
