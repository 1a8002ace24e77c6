/** The Jobs of a deployment. */
import type { PROGRAM_NAMES } from "../build/image-files.ts";
import { SERVICES } from "../database/sql.ts";
import { type KubernetesObject, readDocuments } from "./kubectl.ts";

/** The name of a program that runs as a Job. */
export type JobName = (typeof PROGRAM_NAMES)[number];

/** Jobs that mount the secret of each service. */
const WITH_SECRETS: readonly JobName[] = ["migrate", "preflight"];
/** Jobs that reach Kafka. */
export const WITH_KAFKA: readonly JobName[] = ["topics", "preflight"];

/** Reads a Job, and adds the secret of each service when the Job needs it, so that a new service needs no edit of the YAML. */
export async function readJob(name: JobName): Promise<KubernetesObject> {
  const file = `knative/platform/jobs/${name}.yaml`;
  const [job, ...rest] = await readDocuments(file);
  if (job === undefined || rest.length > 0) throw new Error(`${file} must contain one document.`);
  if (!WITH_SECRETS.includes(name)) return job;
  const { spec } = job.spec.template;
  for (const service of SERVICES) {
    const secret = `database-${service}`;
    spec.containers[0].volumeMounts.push({ name: secret, mountPath: `/etc/lotus/${secret}`, readOnly: true });
    spec.volumes.push({ name: secret, secret: { secretName: secret } });
  }
  return job;
}
