/** Builds images with the tool that is there, and brings them to where the cluster finds them. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CONTEXT } from "../build/image-files.ts";
import { attempt, eachOf, run } from "../process/run.ts";
import type { Builder } from "./options.ts";

export interface Image {
  /** Of the function, or of the program. */
  readonly name: string;
  /** dev.local/lotus-order-pay:0123456789abcdef */
  readonly reference: string;
}

/** How images get into the cluster. */
export type Loading =
  | { readonly kind: "registry" }
  | { readonly kind: "command"; readonly command: string }
  | { readonly kind: "minikube"; readonly profile: string };

/** An image's full name. Knative leaves dev.local alone; any other registry it asks for the digest. */
export function referenceOf(name: string, tag: string, registry: string | undefined): string {
  return `${registry ?? "dev.local"}/lotus-${name}:${tag}`;
}

/** One at a time where the tool locks its store anyway; two keep two cores busy. */
const AT_ONCE = 2;

async function buildImage({ name, reference }: Image, builder: Builder, base: string, profile: string): Promise<void> {
  const values = [`FUNCTION=${name}`, `BASE=${base}`];
  if (builder === "minikube") {
    const options = values.flatMap((value) => ["--build-opt", `build-arg=${value}`]);
    await run("minikube", ["image", "build", "--profile", profile, "-t", reference, ...options, CONTEXT]);
    return;
  }
  const options = values.flatMap((value) => ["--build-arg", value]);
  await run(builder, ["build", "-t", reference, ...options, CONTEXT]);
}

async function exists({ reference }: Image, builder: Builder): Promise<boolean> {
  if (builder === "minikube") return false;
  const inspect = builder === "docker" ? ["image", "inspect"] : ["inspect", "--type", "image"];
  return (await attempt(builder, [...inspect, reference])).code === 0;
}

/** Builds what the tool does not have yet: a tag names its content, so what is there is right. Returns how many. */
export async function buildImages(
  images: readonly Image[],
  builder: Builder,
  base: string,
  profile: string,
  report: (progress: string) => void,
): Promise<number> {
  let built = 0;
  let done = 0;
  await eachOf(images, builder === "minikube" ? 1 : AT_ONCE, async (image) => {
    if (!(await exists(image, builder))) {
      await buildImage(image, builder, base, profile);
      built++;
    }
    done++;
    report(`${done} of ${images.length} images, ${built} of them built`);
  });
  return built;
}

/** buildah's store is its own: minikube gets the image as a file. */
async function loadFromBuildah({ reference }: Image, profile: string): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-image-"));
  try {
    const file = join(folder, "image.tar");
    await run("buildah", ["push", "-q", reference, `docker-archive:${file}:${reference}`]);
    await run("minikube", ["image", "load", "--profile", profile, file]);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function loadImage(image: Image, builder: Builder, loading: Loading): Promise<void> {
  const { reference } = image;
  if (loading.kind === "registry") await run(builder, ["push", reference]);
  else if (loading.kind === "command") {
    await run(loading.command.replaceAll("{image}", reference), [], { shell: true });
  } else if (builder === "buildah") await loadFromBuildah(image, loading.profile);
  else if (builder === "docker") await run("minikube", ["image", "load", "--profile", loading.profile, reference]);
  // Built by minikube it is there already.
}

/** Brings images to where the cluster finds them. */
export async function loadImages(
  images: readonly Image[],
  builder: Builder,
  loading: Loading,
  report: (progress: string) => void,
): Promise<void> {
  let done = 0;
  await eachOf(images, AT_ONCE, async (image) => {
    await loadImage(image, builder, loading);
    done++;
    report(`${done} of ${images.length} images`);
  });
}
