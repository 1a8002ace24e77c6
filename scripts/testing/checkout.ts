/** A copy of the checkout for tests that edit files or generate them. */
import { cp, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../project/paths.ts";

const PARTS = [
  ...["functions", "triggers", "scripts", "knative", "docs", "postman", "README.md"],
  ...["package.json", "package-lock.json", "tsconfig.json", "biome.json", "vitest.config.ts"],
];

export interface CheckoutCopy {
  readonly folder: string;
  remove(): Promise<void>;
}

/** Copies the sources. The copy shares the installed packages, and has no data. A killed test leaves no change in the checkout. */
export async function copyCheckout(): Promise<CheckoutCopy> {
  const folder = await mkdtemp(join(tmpdir(), "lotus-copy-"));
  for (const part of PARTS) await cp(join(ROOT, part), join(folder, part), { recursive: true });
  await symlink(join(ROOT, "node_modules"), join(folder, "node_modules"));
  return { folder, remove: () => rm(folder, { recursive: true, force: true }) };
}
