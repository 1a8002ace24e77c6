import { describe, expect, it } from "vitest";
import { withRoomFor } from "./postgres-capacity.ts";

const manifest = (connections: number, memory: number) =>
  `args: [-c, max_connections=${connections}, -c, shared_buffers=128MB]\nlimits: { memory: ${memory}Gi }\n`;

describe("room for connections", () => {
  it.each([
    ["stays while three are left for superusers", 497, manifest(500, 3)],
    ["grows to the next hundred", 498, manifest(600, 3)],
    ["grows together with the memory", 701, manifest(800, 4)],
  ])("%s", (_, needed, fitted) => {
    expect(withRoomFor(needed, manifest(500, 3))).toBe(fitted);
  });

  it("is refused for a manifest without the setting", () => {
    expect(() => withRoomFor(1, "args: []")).toThrow("has no max_connections");
  });
});
