/** Builds the image, brings it to the cluster or a registry, and reads its digest. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CONTEXT } from "../build/image-files.ts";
import { Refusal } from "../cli/errors.ts";
import { attempt, run } from "../process/run.ts";
import type { Builder } from "./options.ts";

/** How the image gets into the cluster. */
export type Loading =
  | { readonly kind: "registry" }
  | { readonly kind: "command"; readonly command: string }
  | { readonly kind: "minikube"; readonly profile: string };

/** How the image is built. */
export interface BuildPlan {
  /** Such as dev.local/lotus:0123456789abcdef. */
  readonly reference: string;
  readonly builder: Builder;
  readonly base: string;
  /** The profile of minikube, for the builder minikube. */
  readonly profile: string;
  /** Architectures as Kubernetes names them, such as amd64 and arm64. */
  readonly architectures: readonly string[];
  /** The URL of the source, the commit and the version, for the labels of the image. */
  readonly source: string;
  readonly commit: string;
  readonly version: string;
}

/** Returns the full name of the image. Knative asks every registry except dev.local for the digest. */
export function referenceOf(tag: string, registry: string | undefined): string {
  return `${registry ?? "dev.local"}/lotus:${tag}`;
}

/** Returns the command that builds the image. Layers have the time 0, so that equal files give an equal digest. */
export function buildCommand(plan: BuildPlan): [program: string, ...args: string[]] {
  const { reference, builder, base, profile, architectures, source, commit, version } = plan;
  const values = [`BASE=${base}`, `SOURCE=${source}`, `REVISION=${commit}`, `VERSION=${version}`];
  const platforms = architectures.map((architecture) => `linux/${architecture}`).join(",");
  if (builder === "minikube") {
    const options = values.flatMap((value) => ["--build-opt", `build-arg=${value}`]);
    return ["minikube", "image", "build", "--profile", profile, "-t", reference, ...options, CONTEXT];
  }
  const options = values.flatMap((value) => ["--build-arg", value]);
  if (builder === "buildah") {
    const named = architectures.length > 1 ? ["--manifest", reference] : ["-t", reference];
    return [
      "buildah",
      "build",
      "--isolation",
      "chroot",
      "--timestamp",
      "0",
      "--platform",
      platforms,
      ...named,
      ...options,
      CONTEXT,
    ];
  }
  const epoch = ["--build-arg", "SOURCE_DATE_EPOCH=0"];
  if (architectures.length > 1) {
    const output = ["--output", `type=image,name=${reference},push=true,rewrite-timestamp=true`];
    return ["docker", "buildx", "build", "--platform", platforms, ...output, ...options, ...epoch, CONTEXT];
  }
  return ["docker", "build", "--platform", platforms, "-t", reference, ...options, ...epoch, CONTEXT];
}

/** Builds the image. */
export async function buildImage(plan: BuildPlan): Promise<void> {
  const [program, ...args] = buildCommand(plan);
  await run(program, args);
}

/** Whether the builder's own store contains the image. */
export async function isBuilt(reference: string, builder: Builder): Promise<boolean> {
  if (builder === "minikube") return false;
  const inspect = builder === "docker" ? ["image", "inspect"] : ["inspect", "--type", "image"];
  return (await attempt(builder, [...inspect, reference])).code === 0;
}

/** Whether a registry contains the image: docker or skopeo asks it. */
export async function isInRegistry(reference: string): Promise<boolean> {
  if ((await attempt("docker", ["manifest", "inspect", reference])).code === 0) return true;
  return (await attempt("skopeo", ["inspect", "--raw", `docker://${reference}`])).code === 0;
}

/** The store of buildah is separate, so minikube receives the image as a file. */
async function loadFromBuildah(reference: string, profile: string): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-image-"));
  try {
    const file = join(folder, "image.tar");
    await run("buildah", ["push", "-q", reference, `docker-archive:${file}:${reference}`]);
    await run("minikube", ["image", "load", "--profile", profile, file]);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Brings the image to the cluster or the registry. */
export async function loadImage({ reference, builder, architectures }: BuildPlan, loading: Loading): Promise<void> {
  if (loading.kind === "registry") await push(reference, builder, architectures.length > 1);
  else if (loading.kind === "command") {
    await run(loading.command.replaceAll("{image}", reference), [], { shell: true });
  } else if (builder === "buildah") await loadFromBuildah(reference, loading.profile);
  else if (builder === "docker") await run("minikube", ["image", "load", "--profile", loading.profile, reference]);
  // An image that minikube built is in minikube.
}

async function push(reference: string, builder: Builder, isList: boolean): Promise<void> {
  // docker buildx pushes a list while it builds it.
  if (builder === "docker" && isList) return;
  if (builder === "buildah" && isList)
    await run("buildah", ["manifest", "push", "--all", reference, `docker://${reference}`]);
  else await run(builder, ["push", reference]);
}

/**
 * Returns repository@sha256:… of an image in a registry.
 * @throws {Refusal} when docker and skopeo cannot read it
 */
export async function digestOf(reference: string): Promise<string> {
  const repository = reference.slice(0, reference.lastIndexOf(":"));
  const commands: [string, ...string[]][] = [
    ["docker", "buildx", "imagetools", "inspect", reference, "--format", "{{.Manifest.Digest}}"],
    ["skopeo", "inspect", "--format", "{{.Digest}}", `docker://${reference}`],
  ];
  for (const [program, ...args] of commands) {
    const { code, stdout } = await attempt(program, args);
    if (code === 0 && /^sha256:[0-9a-f]{64}$/.test(stdout.trim())) return `${repository}@${stdout.trim()}`;
  }
  throw new Refusal(
    `The digest of ${reference} cannot be read. Install docker with buildx, or skopeo, and log in to the registry.`,
  );
}

/** Returns the base image with its digest, so that a moved tag gives another image. */
export async function pinBase(base: string): Promise<string> {
  if (base.includes("@sha256:")) return base;
  return digestOf(base).then(
    (pinned) => `${base}@${pinned.slice(pinned.indexOf("@") + 1)}`,
    () => base,
  );
}

/** Reads the commit of the checkout; an empty text outside git. */
export async function commitOf(folder: string): Promise<string> {
  const { code, stdout } = await attempt("git", ["-C", folder, "rev-parse", "HEAD"]);
  return code === 0 ? stdout.trim() : "";
}

/** Reads the version of package.json. */
export async function versionOf(folder: string): Promise<string> {
  return (JSON.parse(await readFile(join(folder, "package.json"), "utf8")) as { version: string }).version;
}
