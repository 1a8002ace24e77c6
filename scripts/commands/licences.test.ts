import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { ROOT } from "../project/paths.ts";
import { shippedPackages } from "./licences.ts";

it("lists each package that ships, with its licence, and no package of development", async () => {
  const shipped = shippedPackages(await readFile(join(ROOT, "package-lock.json"), "utf8"));
  expect(shipped).toContainEqual({ name: "kafkajs", version: "2.2.4", licence: "MIT" });
  expect(shipped.filter(({ licence }) => licence === "unknown")).toEqual([]);
  expect(shipped.map(({ name }) => name)).not.toContain("vitest");
});
