/** The Job that migrates the database. */
import { SERVICES } from "../database/sql.ts";
import { type KubernetesObject, readDocuments } from "./kubectl.ts";

/** Returns the Job with the secret of each service, so that a new service needs no edit of the YAML. */
export async function readMigrateJob(): Promise<KubernetesObject> {
  const [job] = await readDocuments("knative/platform/jobs/migrate.yaml");
  if (job === undefined) throw new Error("knative/platform/jobs/migrate.yaml contains no document.");
  const { spec } = job.spec.template;
  for (const service of SERVICES) {
    const name = `database-${service}`;
    spec.containers[0].volumeMounts.push({ name, mountPath: `/etc/lotus/${name}`, readOnly: true });
    spec.volumes.push({ name, secret: { secretName: name } });
  }
  return job;
}
