/** A WebSocket to Neon. It joins what the driver writes in one turn of the event loop into one message. */
import { WebSocket } from "ws";

/** The driver's own `coalesceWrites` waits for a timer: at least a millisecond a statement. */
export class NeonSocket extends WebSocket {
  #pending: Uint8Array[] = [];

  constructor(url: string) {
    super(url, { perMessageDeflate: false });
  }

  override send(data: Uint8Array): void {
    if (this.#pending.push(data) > 1) return;
    process.nextTick(() => {
      const pending = this.#pending;
      this.#pending = [];
      if (this.readyState === WebSocket.OPEN) super.send(pending.length === 1 ? data : Buffer.concat(pending));
      // The close event reaches the statement that waits; a closing handshake may take half a minute.
      else this.terminate();
    });
  }
}
