/** A connection to Postgres over TCP or TLS in the shape of a WebSocket, which Neon's driver expects. */
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { type DatabaseAddress, explainTls, tlsOptions } from "./database-url.ts";
import {
  DATABASE_BUFFERED_BYTES_MAX,
  DATABASE_CLOSE_MILLISECONDS_MAX,
  DATABASE_CONNECT_MILLISECONDS_MAX,
  DATABASE_KEEP_ALIVE_MILLISECONDS,
} from "./settings.ts";

/** PostgreSQL's protocol, 55.2.11: length 8, then the request code 1234 5679. */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
const ACCEPTED = "S";
const REFUSED = "N";

type EventName = "open" | "message" | "error" | "close";
type Listener = (event: unknown) => void;

/** Asks the server for TLS. Resolves to the encrypted socket; rejects when the server refuses or sends more than its answer. */
function upgrade(tcp: Socket, address: DatabaseAddress): Promise<Socket> {
  return new Promise((resolve, reject) => {
    tcp.once("error", reject);
    tcp.once("close", () => reject(new Error("The database closed the connection before TLS began.")));
    tcp.once("data", (answer: Buffer) => {
      const word = answer.toString("latin1");
      // Bytes after the answer would be plain text that somebody injected before TLS (CVE-2021-23222).
      if (word !== ACCEPTED)
        return reject(
          new Error(
            word === REFUSED
              ? `The database at ${address.host} does not offer TLS, and sslmode=${address.tlsMode} demands it.`
              : `The database at ${address.host} did not answer the request for TLS as Postgres does.`,
          ),
        );
      tcp.removeAllListeners("error").removeAllListeners("close");
      const secure = connectTls({ ...tlsOptions(address), socket: tcp });
      secure.once("secureConnect", () => resolve(secure));
      secure.once("error", (error) => reject(explainTls(error, address.host)));
      secure.once("close", () => reject(new Error("The database closed the connection while TLS began.")));
    });
    tcp.write(SSL_REQUEST);
  });
}

/**
 * Makes the class that `neonConfig.webSocketConstructor` accepts: each instance is one connection to `address`.
 * A connection carries one statement at a time, so the statement is the back-pressure; a statement above
 * DATABASE_BUFFERED_BYTES_MAX that the server does not read ends its connection.
 */
export function postgresSocket(address: DatabaseAddress): new () => PostgresSocket {
  return class extends PostgresSocket {
    constructor() {
      super(address);
    }
  };
}

class PostgresSocket {
  /** The driver sets it; messages are always ArrayBuffers or views of them. */
  binaryType = "arraybuffer";
  readonly #listeners: Record<EventName, Listener[]> = { open: [], message: [], error: [], close: [] };
  #socket: Socket;
  #pending: Uint8Array[] = [];
  #open = false;
  #ended = false;

  constructor(address: DatabaseAddress) {
    const { host, port } = address;
    const tcp = connect({
      host,
      port,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: DATABASE_KEEP_ALIVE_MILLISECONDS,
    });
    this.#socket = tcp;
    const late = setTimeout(
      () => this.#end(new Error(`The database at ${host}:${port} did not accept a connection in time.`)),
      DATABASE_CONNECT_MILLISECONDS_MAX,
    );
    const begin = (socket: Socket) => {
      clearTimeout(late);
      if (this.#ended) return void socket.destroy();
      this.#socket = socket;
      socket.removeAllListeners("error").removeAllListeners("close");
      socket.on("error", (error) => this.#end(error));
      socket.on("close", () => this.#end());
      socket.on("data", (data) => this.#emit("message", { data }));
      this.#open = true;
      this.#emit("open", {});
    };
    const fail = (error: NodeJS.ErrnoException) => {
      clearTimeout(late);
      // Node tries every address of a name; the error of them all has no message.
      this.#end(error.message === "" ? new Error(`connect ${error.code} ${host}:${port}`) : error);
    };
    tcp.once("error", fail);
    tcp.once("close", () => clearTimeout(late));
    tcp.once("connect", () => {
      if (address.tlsMode === "disable") return begin(tcp);
      tcp.removeAllListeners("error");
      upgrade(tcp, address).then(begin, fail);
    });
  }

  /** The states of the WebSocket standard: connecting 0, open 1, closed 3. */
  get readyState(): number {
    return this.#ended ? 3 : this.#open ? 1 : 0;
  }

  addEventListener(name: EventName, listener: Listener): void {
    this.#listeners[name].push(listener);
  }

  /** Sends bytes. Joins what is sent in one turn of the event loop into one write. */
  send(data: Uint8Array): void {
    if (this.#pending.push(data) === 1) process.nextTick(() => this.#flush());
  }

  /** Sends what is pending and closes. A server that does not read is not waited for. */
  close(): void {
    if (this.#ended) return;
    this.#flush();
    const socket = this.#socket;
    if (this.#open) {
      socket.destroySoon();
      setTimeout(() => this.#end(), DATABASE_CLOSE_MILLISECONDS_MAX).unref();
    } else this.#end();
  }

  #flush(): void {
    const pending = this.#pending;
    this.#pending = [];
    const [first] = pending;
    if (first === undefined || !this.#open || this.#ended) return;
    this.#socket.write(pending.length === 1 ? first : Buffer.concat(pending));
    if (this.#socket.writableLength > DATABASE_BUFFERED_BYTES_MAX)
      this.#end(
        new Error(`The database does not read: more than ${DATABASE_BUFFERED_BYTES_MAX} bytes wait to be sent.`),
      );
  }

  #end(error?: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#socket.on("error", () => undefined).destroy();
    if (error !== undefined) this.#emit("error", error);
    this.#emit("close", {});
  }

  #emit(name: EventName, event: unknown): void {
    for (const listener of this.#listeners[name]) listener(event);
  }
}
