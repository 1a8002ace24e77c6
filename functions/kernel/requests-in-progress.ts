/** How many requests a process works on at a time: in all, and for one client. */
import { Problem } from "./problem.ts";

const later = { headers: { "retry-after": "1" } };

/** Counts the requests in progress of one process. */
export class RequestsInProgress {
  readonly #requestsMax: number;
  readonly #ofClient = new Map<string, number>();
  /** One object for every refusal: an overloaded process has no time to create errors with stacks. */
  readonly #overload: Problem;
  #count = 0;

  /** @param requestsMax requests in progress of all clients together */
  constructor(requestsMax: number) {
    this.#requestsMax = requestsMax;
    const detail = `${requestsMax} requests are in progress already. The request had no effect; try again in a moment.`;
    this.#overload = new Problem("unavailable", detail, later);
  }

  /** The refusal of every further request; undefined while there is room for one. */
  get overload(): Problem | undefined {
    return this.#count >= this.#requestsMax ? this.#overload : undefined;
  }

  /**
   * Counts a request as begun.
   * @param client a user's id, or an address
   * @param clientMax requests in progress of this client
   * @returns the function to call once when the work has ended, or the refusal to answer with
   */
  begin(client: string, clientMax: number): Problem | (() => void) {
    const ofClient = this.#ofClient.get(client) ?? 0;
    if (ofClient >= clientMax) {
      const detail = `${clientMax} of your requests are in progress already. The request had no effect; wait for their answers.`;
      return new Problem("too-many-requests", detail, later);
    }
    if (this.overload !== undefined) return this.overload;
    this.#count++;
    this.#ofClient.set(client, ofClient + 1);
    return () => {
      this.#count--;
      const left = (this.#ofClient.get(client) ?? 1) - 1;
      if (left === 0) this.#ofClient.delete(client);
      else this.#ofClient.set(client, left);
    };
  }
}
