import { describe, expect, it } from "vitest";
import { type BuildPlan, buildCommand } from "./images.ts";

const plan: BuildPlan = {
  reference: "registry.example/lotus:0123456789abcdef",
  builder: "docker",
  base: "base@sha256:0",
  profile: "",
  architectures: ["amd64"],
  source: "https://example.com/shop",
  commit: "c0ffee",
  version: "1.2.3",
};

describe("the command that builds the image", () => {
  it.each([
    ["docker", ["amd64"], "linux/amd64"],
    ["docker", ["amd64", "arm64"], "linux/amd64,linux/arm64"],
    ["buildah", ["arm64"], "linux/arm64"],
    ["buildah", ["amd64", "arm64"], "linux/amd64,linux/arm64"],
  ] as const)("names the platforms for %s and %j", (builder, architectures, platforms) => {
    const command = buildCommand({ ...plan, builder, architectures });
    expect(command[command.indexOf("--platform") + 1]).toBe(platforms);
    expect(command).toEqual(expect.arrayContaining(["BASE=base@sha256:0", "REVISION=c0ffee", "VERSION=1.2.3"]));
  });

  it("lets buildah run a program without privileges, and gives layers no time", () => {
    const command = buildCommand({ ...plan, builder: "buildah" }).join(" ");
    expect(command).toContain("--isolation chroot --timestamp 0");
  });
});
