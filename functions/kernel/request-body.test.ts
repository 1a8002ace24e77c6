import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { Problem } from "./problem.ts";
import { hasBody, Receiver } from "./request-body.ts";

/** A request whose body the test writes. */
function request(headers: Record<string, string> = {}): IncomingMessage & PassThrough {
  return Object.assign(new PassThrough(), { headers }) as unknown as IncomingMessage & PassThrough;
}

/** The outcome of a body: its text, the refusal, or the message of the error. */
async function outcomeOf(received: Promise<Buffer | Problem>): Promise<string | Problem> {
  try {
    const outcome = await received;
    return outcome instanceof Problem ? outcome : outcome.toString();
  } catch (error) {
    return (error as Error).message;
  }
}

const BROKEN_OFF = "the client closed the connection before its body was complete";

describe("a head", () => {
  it.each([
    [{}, false],
    [{ "content-length": "0" }, true],
    [{ "content-length": "3" }, true],
    [{ "transfer-encoding": "chunked" }, true],
  ])("%j announces a body: %s", (headers, expected) => expect(hasBody(request(headers))).toBe(expected));
});

describe("a receiver", () => {
  it("returns the bytes of all parts", async () => {
    const receiver = new Receiver(1, 6);
    const incoming = request();
    const received = receiver.receive(incoming, "a");
    incoming.write("abc");
    incoming.write("de");
    incoming.end("f");
    expect(await outcomeOf(received)).toBe("abcdef");
  });

  it("refuses an announced body over the limit before a byte of it arrives", async () => {
    const receiver = new Receiver(1, 6);
    expect(await outcomeOf(receiver.receive(request({ "content-length": "7" }), "a"))).toMatchObject({
      code: "body-too-large",
      status: 413,
    });
  });

  it("refuses a body at the byte over the limit, and discards the rest of it", async () => {
    const receiver = new Receiver(1, 6);
    const incoming = request();
    const received = receiver.receive(incoming, "a");
    incoming.write("abcdefg");
    expect(await outcomeOf(received)).toMatchObject({ code: "body-too-large" });
    incoming.end("x".repeat(1_000_000));
    await once(incoming, "close");
    expect(incoming.readableLength).toBe(0);
  });

  it("fails when the client has left, before or during its body, and when the connection breaks", async () => {
    const receiver = new Receiver(1, 6);
    const gone = request();
    gone.destroy();
    await once(gone, "close");
    expect(await outcomeOf(receiver.receive(gone, "a"))).toBe(BROKEN_OFF);
    for (const error of [undefined, new Error("reset")]) {
      const leaving = request();
      const received = receiver.receive(leaving, "a");
      leaving.write("abc");
      leaving.destroy(error);
      expect(await outcomeOf(received)).toBe(BROKEN_OFF);
    }
  });

  it("ends the oldest body of the address that has most when one more arrives, and closes its connection", async () => {
    const receiver = new Receiver(3, 6);
    const outcomes: string[] = [];
    const begin = (name: string, address: string) => {
      const incoming = request();
      const received = outcomeOf(receiver.receive(incoming, address)).then((outcome) => {
        outcomes.push(`${name}: ${typeof outcome === "string" ? outcome : outcome.code}`);
        return outcome;
      });
      return { incoming, received };
    };
    const modest = begin("modest", "1.1.1.1");
    const [first, second] = [begin("first", "2.2.2.2"), begin("second", "2.2.2.2")];
    const other = begin("other", "3.3.3.3");
    expect(await first.received).toMatchObject({
      code: "unavailable",
      headers: { "retry-after": "1", connection: "close" },
    });
    for (const { incoming } of [modest, second, other]) incoming.end("abc");
    await Promise.all([modest, second, other].map(({ received }) => received));
    expect(outcomes).toEqual(["first: unavailable", "modest: abc", "second: abc", "other: abc"]);
  });

  it("stops counting a body when it is complete, refused or aborted", async () => {
    const receiver = new Receiver(1, 6);
    const ends: ((incoming: PassThrough) => void)[] = [
      (incoming) => incoming.end("abc"),
      (incoming) => incoming.end("abcdefg"),
      (incoming) => incoming.destroy(),
    ];
    for (const end of ends) {
      const ending = request();
      const ended = outcomeOf(receiver.receive(ending, "1.1.1.1"));
      end(ending);
      await ended;
    }
    const crowdedOut = outcomeOf(receiver.receive(request(), "2.2.2.2"));
    const last = request();
    const received = outcomeOf(receiver.receive(last, "3.3.3.3"));
    expect(await crowdedOut).toMatchObject({ code: "unavailable" });
    last.end("last");
    expect(await received).toBe("last");
  });
});
