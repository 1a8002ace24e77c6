import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { connectTo } from "./client.ts";
import { changeOwnerPassword } from "./owner.ts";

const ROLE = `owner_${process.pid}`;
const urlWith = (password: string) => {
  const url = new URL(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
  url.username = ROLE;
  url.password = password;
  return url.href;
};
let admin: Awaited<ReturnType<typeof connectTo>>;
beforeAll(async () => {
  admin = await connectTo(inject("templateUrl").replace(/\/lotus$/, "/postgres"));
  await admin.query(`create role ${ROLE} login password 'first'`);
});
afterAll(async () => {
  await admin.query(`drop role ${ROLE}`);
  await admin.end();
});

describe("the owner's password", () => {
  it("changes: the new one works and the old one fails", async () => {
    await changeOwnerPassword(urlWith("first"), "second");
    await (await connectTo(urlWith("second"))).end();
    await expect(connectTo(urlWith("first"))).rejects.toThrow("password");
  });

  it("may be changed again after an interruption, with the old URL", async () => {
    await changeOwnerPassword(urlWith("first"), "second");
    await (await connectTo(urlWith("second"))).end();
  });

  it("is refused when both passwords are wrong", async () => {
    await expect(changeOwnerPassword(urlWith("wrong"), "third")).rejects.toThrow("password");
  });
});
