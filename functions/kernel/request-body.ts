/** Receiving the bodies of requests, within limits of bytes and of bodies that arrive at a time. */
import type { IncomingMessage } from "node:http";
import { Problem } from "./problem.ts";

/** Returns whether the head of a request announces a body (RFC 9112 §6). */
export function hasBody({ headers }: IncomingMessage): boolean {
  return headers["transfer-encoding"] !== undefined || headers["content-length"] !== undefined;
}

/** Creates the refusal of a body over the limit. */
export function bodyTooLarge(bytesMax: number): Problem {
  return new Problem("body-too-large", `A body may have at most ${bytesMax} bytes.`);
}

/** Closes the connection: the client that sends too slowly would keep it. */
const crowdedOut = () =>
  new Problem(
    "unavailable",
    "Too many requests are incomplete, and this one waited longest. The request had no effect.",
    {
      headers: { "retry-after": "1", connection: "close" },
    },
  );

const brokenOff = () => new Error("the client closed the connection before its body was complete");

/** Receives bodies for one process. `listener.ts` limits the time that each may take. */
export class Receiver {
  readonly #requestsMax: number;
  readonly #bytesMax: number;
  /** The functions that end the waiting of a request, by client address, in order of arrival. */
  readonly #waiting = new Map<string, Set<(refusal: Problem) => void>>();
  #count = 0;

  /**
   * @param requestsMax bodies that arrive at a time; one more ends the oldest of the address that has most
   * @param bytesMax the longest body, in bytes
   */
  constructor(requestsMax: number, bytesMax: number) {
    this.#requestsMax = requestsMax;
    this.#bytesMax = bytesMax;
  }

  /**
   * Receives the body of a request.
   * @param address the client's, which shares the limit with others
   * @returns the body, or the refusal to answer with; the rest of a refused body is discarded as it arrives
   * @throws {Error} when the client ends the connection first
   */
  receive(request: IncomingMessage, address: string): Promise<Buffer | Problem> {
    if (Number(request.headers["content-length"] ?? 0) > this.#bytesMax) {
      request.resume();
      return Promise.resolve(bodyTooLarge(this.#bytesMax));
    }
    if (request.destroyed) return Promise.reject(brokenOff());
    return new Promise((resolve, reject) => {
      const chunks: Buffer[] = [];
      let length = 0;
      const take = (chunk: Buffer) => {
        length += chunk.length;
        if (length > this.#bytesMax) refuse(bodyTooLarge(this.#bytesMax));
        else chunks.push(chunk);
      };
      const complete = () => {
        leave();
        resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks, length));
      };
      const breakOff = () => {
        leave();
        reject(brokenOff());
      };
      const refuse = (refusal: Problem) => {
        leave();
        request.resume();
        resolve(refusal);
      };
      const leave = () => {
        request.off("data", take).off("end", complete).off("close", breakOff).off("error", breakOff);
        request.on("error", () => undefined);
        this.#remove(address, refuse);
      };
      request.on("data", take).once("end", complete).once("close", breakOff).once("error", breakOff);
      this.#add(address, refuse);
    });
  }

  #add(address: string, refuse: (refusal: Problem) => void): void {
    const ofAddress = this.#waiting.get(address);
    if (ofAddress === undefined) this.#waiting.set(address, new Set([refuse]));
    else ofAddress.add(refuse);
    this.#count++;
    if (this.#count <= this.#requestsMax) return;
    let most: Set<(refusal: Problem) => void> = new Set();
    for (const candidate of this.#waiting.values()) if (candidate.size > most.size) most = candidate;
    const [oldest] = most;
    oldest?.(crowdedOut());
  }

  #remove(address: string, refuse: (refusal: Problem) => void): void {
    const ofAddress = this.#waiting.get(address);
    if (!ofAddress?.delete(refuse)) return;
    this.#count--;
    if (ofAddress.size === 0) this.#waiting.delete(address);
  }
}
