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

it("passwords are hashed up to a limit at a time; more are refused at once until one ends", async () => {
  const { hashPassword, PASSWORDS_IN_PROGRESS_MAX } = await import("./password.ts");
  const under = Array.from({ length: PASSWORDS_IN_PROGRESS_MAX }, () => hashPassword("correct horse"));
  await expect(hashPassword("correct horse")).rejects.toMatchObject({
    code: "unavailable",
    headers: { "retry-after": "1" },
  });
  for (const finish of work.splice(0)) finish();
  await Promise.all(under);
  const next = hashPassword("correct horse");
  work[0]?.();
  expect(await next).toMatch(/^scrypt\$/);
});
