import type { IncomingMessage } from "node:http";
import { describe, expect, it } from "vitest";
import { REQUEST_BODY_BYTES_MAX } from "./limits.ts";
import type { Problem } from "./problem.ts";
import { addressOf, readBody } from "./request.ts";

const from = (remoteAddress: string | undefined, forwarded?: string) =>
  ({
    headers: forwarded === undefined ? {} : { "x-forwarded-for": forwarded },
    socket: { remoteAddress },
  }) as unknown as IncomingMessage;

describe("the address of a client", () => {
  it.each([
    // No proxy: the header is the client's claim.
    [0, "203.0.113.9", undefined, "203.0.113.9"],
    [0, "203.0.113.9", "8.8.8.8", "203.0.113.9"],
    [0, "192.168.1.20", "8.8.8.8, 192.168.1.20", "192.168.1.20"],
    [0, "::ffff:203.0.113.9", "8.8.8.8", "203.0.113.9"],
    [0, "::1", undefined, "0:0:0:0::/64"],
    [0, undefined, "8.8.8.8", "unknown"],
    // One proxy: it appended the last entry.
    [1, "127.0.0.1", "203.0.113.9", "203.0.113.9"],
    [1, "127.0.0.1", "8.8.8.8, 203.0.113.9", "203.0.113.9"],
    [1, "127.0.0.1", "8.8.8.8, 192.168.1.20", "192.168.1.20"],
    [1, "127.0.0.1", "8.8.8.8, 10.0.0.7", "10.0.0.7"],
    [1, "127.0.0.1", "8.8.8.8,::ffff:192.168.1.20", "192.168.1.20"],
    [1, "127.0.0.1", "8.8.8.8, ::FFFF:c0a8:0114", "192.168.1.20"],
    [1, "127.0.0.1", "203.0.113.9:4711", "203.0.113.9"],
    [1, "127.0.0.1", "[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::/64"],
    [1, "127.0.0.1", "fe80::1%eth0", "fe80:0:0:0::/64"],
    [1, "203.0.113.9", undefined, "203.0.113.9"],
    [1, "203.0.113.9", "nonsense", "203.0.113.9"],
    [1, "203.0.113.9", "8.8.8.8, ", "203.0.113.9"],
    // Two proxies: the last entry is the address of the first of them.
    [2, "127.0.0.1", "8.8.8.8, 203.0.113.9, 10.0.0.7", "203.0.113.9"],
    [2, "203.0.113.9", "8.8.8.8", "203.0.113.9"],
  ])("behind %i proxies, from %s with X-Forwarded-For: %s, is %s", (proxies, remote, forwarded, address) => {
    expect(addressOf(from(remote, forwarded), proxies)).toBe(address);
  });

  it("is one for all addresses of an IPv6 /64, in every notation", () => {
    const addresses = ["2001:db8::1", "2001:db8::ffff:1", "2001:DB8:0:0:ab::", "2001:0db8:0000:0000:1:2:3:4"];
    expect(new Set(addresses.map((address) => addressOf(from(address), 0)))).toEqual(new Set(["2001:db8:0:0::/64"]));
    expect(addressOf(from("2001:db8:0:1::1"), 0)).toBe("2001:db8:0:1::/64");
  });
});

describe("a body that the functions framework has read by itself", () => {
  it("has the limit of a function's server", () => {
    const codeOf = (bytes: number) => {
      const headers = { "content-type": "application/json" };
      const rawBody = Buffer.from(`{}${" ".repeat(bytes - 2)}`);
      try {
        return readBody({ headers, rawBody } as IncomingMessage & { rawBody: Buffer });
      } catch (error) {
        return (error as Problem).code;
      }
    };
    expect(codeOf(REQUEST_BODY_BYTES_MAX)).toEqual({});
    expect(codeOf(REQUEST_BODY_BYTES_MAX + 1)).toBe("body-too-large");
  });
});
