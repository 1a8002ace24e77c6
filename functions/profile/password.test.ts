import { expect, it, vi } from "vitest";

const work: (() => void)[] = [];
vi.mock("node:crypto", async (original) => {
  const crypto = await original<typeof import("node:crypto")>();
  const scrypt = (...args: Parameters<typeof crypto.scrypt>) => {
    const done = args.at(-1) as (error: null, hash: Buffer) => void;
    work.push(() => done(null, Buffer.alloc(32)));
  };
  return { ...crypto, scrypt };
});

it("passwords are hashed up to a limit at a time, and up to a share for one address, until one ends", async () => {
  const { hashPassword, PASSWORDS_IN_PROGRESS_MAX, PASSWORDS_OF_ADDRESS_MAX } = await import("./password.ts");
  const hash = (address: string) => hashPassword("correct horse", address);
  const greedy = Array.from({ length: PASSWORDS_OF_ADDRESS_MAX }, () => hash("192.0.2.1"));
  const refusal = (code: string) => ({ code, headers: { "retry-after": "1" } });
  await expect(hash("192.0.2.1")).rejects.toMatchObject(refusal("too-many-requests"));
  const left = PASSWORDS_IN_PROGRESS_MAX - PASSWORDS_OF_ADDRESS_MAX;
  const others = Array.from({ length: left }, (_, n) => hash(`198.51.100.${n}`));
  await expect(hash("203.0.113.1")).rejects.toMatchObject(refusal("unavailable"));
  for (const finish of work.splice(0)) finish();
  await Promise.all([...greedy, ...others]);
  const next = hash("192.0.2.1");
  work[0]?.();
  expect(await next).toMatch(/^scrypt\$/);
});
