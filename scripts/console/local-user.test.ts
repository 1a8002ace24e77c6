import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { afterEach, describe, expect, it, vi } from "vitest";
import { isOfThisUser, userOf } from "./local-user.ts";

const TABLE = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12 1 0000000000000000 20 4 30 10 -1
   2: 0200A8C0:C350 0300A8C0:1F90 01 00000000:00000000 00:00000000 00000000  1002        0 13 1 0000000000000000 20 4 30 10 -1
   3: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 14 1 0000000000000000 20 4 30 10 -1
   4: 0000000000000000FFFF00000100007F:C351 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1003        0 15 1 0 20 4 30 10 -1
   5: 00000000000000000000000001000000:C352 00000000000000000000000001000000:1F90 01 00000000:00000000 00:00000000 00000000  1004        0 16 1 0 20 4 30 10 -1
`;

afterEach(() => {
  vi.restoreAllMocks();
});

describe("the user of a connection", () => {
  it.each([
    [50_000, 8080, 1001],
    [50_001, 8080, 1003],
    [50_002, 8080, 1004],
    [50_000, 8081, undefined],
    [50_003, 8080, undefined],
  ])("from port %i to port %i is %s, as the side that opened it says", (from, to, user) => {
    expect(userOf(TABLE, from, to)).toBe(user);
  });

  it.skipIf(process.platform !== "linux")("is compared with the user of this process", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
    const [socket] = (await once(server, "connection")) as [Socket];
    try {
      expect(await isOfThisUser(socket)).toBe(true);
      const own = process.getuid?.() ?? 0;
      vi.spyOn(process, "getuid").mockReturnValue(own + 1);
      // Root may use the console of every user.
      expect(await isOfThisUser(socket)).toBe(own === 0);
    } finally {
      client.destroy();
      server.close();
    }
  });
});
