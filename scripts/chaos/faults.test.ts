import { expect, it } from "vitest";
import { type Fault, inject, type Target } from "./faults.ts";
import { randomFrom } from "./random.ts";

const target: Target = {
  directUrl: "postgres://127.0.0.1",
  isSuperuser: false,
  random: randomFrom(1),
  poison: { sent: new Set(), acknowledged: new Set() },
};
const faultThat = (begin: Fault["begin"]): Fault => ({
  name: "lock-accounts",
  summary: "",
  needs: "database",
  group: "database",
  milliseconds: 0,
  begin,
});
const { signal } = new AbortController();

it("counts a fault whose transaction lost a deadlock with Lotus as one without a target, and reports every other failure", async () => {
  const deadlock = Object.assign(new Error("deadlock detected"), { code: "40P01" });
  expect(
    await inject(
      faultThat(() => Promise.reject(deadlock)),
      target,
      signal,
    ),
  ).toBe(false);
  const other = Object.assign(new Error("permission denied"), { code: "42501" });
  await expect(
    inject(
      faultThat(() => Promise.reject(other)),
      target,
      signal,
    ),
  ).rejects.toBe(other);
  expect(
    await inject(
      faultThat(async () => async () => undefined),
      target,
      signal,
    ),
  ).toBe(true);
});
