/** A connection to Postgres over TCP or TLS in the shape of a WebSocket, which Neon's driver expects. */
import { connect, type Socket } from "node:net";
import { connect as connectTls, createSecureContext, type SecureContext } from "node:tls";
import { type DatabaseAddress, explainTls, tlsOptions } from "./database-url.ts";
import {
  DATABASE_BUFFERED_BYTES_MAX,
  DATABASE_CLOSE_MILLISECONDS_MAX,
  DATABASE_KEEP_ALIVE_MILLISECONDS,
} from "./limits.ts";

/** PostgreSQL's protocol, 55.2.11: length 8, then the request code 1234 5679. */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
const ACCEPTED = "S";
const REFUSED = "N";

type EventName = "open" | "message" | "error" | "close";
type Listener = (event: unknown) => void;

/** Asks the server for TLS. Resolves to the encrypted socket; rejects when the server refuses or sends more than its answer. */
function upgrade(tcp: Socket, address: DatabaseAddress, secureContext: SecureContext): Promise<Socket> {
  return new Promise((resolve, reject) => {
    tcp.once("error", reject);
    tcp.once("close", () => reject(new Error("The database closed the connection before TLS began.")));
    tcp.once("data", (answer: Buffer) => {
      const word = answer.toString("latin1");
      // Bytes after the answer would be plain text that an attacker injected before TLS (CVE-2021-23222).
      if (word !== ACCEPTED)
        return reject(
          new Error(
            word === REFUSED
              ? `The database at ${address.host} does not offer TLS, and sslmode=${address.tlsMode} demands it.`
              : `The database at ${address.host} did not answer the request for TLS as Postgres does.`,
          ),
        );
      tcp.removeAllListeners("error").removeAllListeners("close");
      const secure = connectTls({ ...tlsOptions(address), secureContext, socket: tcp });
      secure.once("secureConnect", () => resolve(secure));
      secure.once("error", (error) => reject(explainTls(error, address.host)));
      secure.once("close", () => reject(new Error("The database closed the connection while TLS began.")));
    });
    tcp.write(SSL_REQUEST);
  });
}

/** The connection ended before it sent a byte of the statement, so the statement changed nothing. */
export class NotSentError extends Error {}

/**
 * Makes the class that `neonConfig.webSocketConstructor` accepts: each instance is one connection to `address`.
 * Writes: a connection carries one statement at a time, so a server that does not read holds back the next statement. At most
 * DATABASE_BUFFERED_BYTES_MAX wait to be sent; one more write ends the connection with a {@link NotSentError}.
 * Reads: the driver parses each piece before Node reads the next one, so TCP holds back a server that sends too fast.
 */
export function postgresSocket(address: DatabaseAddress): new () => PostgresSocket {
  let context: SecureContext | undefined;
  const secureContext = () => {
    context ??= createSecureContext(tlsOptions(address));
    return context;
  };
  return class extends PostgresSocket {
    constructor() {
      super(address, secureContext);
    }
  };
}

/** The pool and tryLogin limit the time of its opening: they close a socket that does not open. */
class PostgresSocket {
  /** The driver sets it; messages are always ArrayBuffers or views of them. */
  binaryType = "arraybuffer";
  readonly #listeners: Record<EventName, Listener[]> = { open: [], message: [], error: [], close: [] };
  #socket: Socket;
  readonly #place: string;
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  #open = false;
  #ended = false;

  constructor(address: DatabaseAddress, secureContext: () => SecureContext) {
    const { host, port, tlsMode } = address;
    const tcp = connect({
      host,
      port,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: DATABASE_KEEP_ALIVE_MILLISECONDS,
    });
    this.#socket = tcp;
    this.#place = `${host}:${port}`;
    const begin = (socket: Socket) => {
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
      // Node tries every address of a name; the error of them all has no message.
      this.#end(error.message === "" ? new Error(`connect ${error.code} ${this.#place}`) : error);
    };
    tcp.once("error", fail);
    // The certificates are parsed while the connection opens.
    const context = tlsMode === "disable" ? undefined : secureContext();
    tcp.once("connect", () => {
      if (context === undefined) return begin(tcp);
      tcp.removeAllListeners("error");
      upgrade(tcp, address, context).then(begin, fail);
    });
  }

  /** The states of the WebSocket standard: connecting 0, open 1, closed 3. */
  get readyState(): number {
    return this.#ended ? 3 : this.#open ? 1 : 0;
  }

  /** The bytes that wait to be sent, as in the WebSocket standard. */
  get bufferedAmount(): number {
    return this.#pendingBytes + this.#socket.writableLength;
  }

  addEventListener(name: EventName, listener: Listener): void {
    this.#listeners[name].push(listener);
  }

  /** Sends bytes. Joins what is sent in one turn of the event loop into one write. */
  send(data: Uint8Array): void {
    this.#pendingBytes += data.length;
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
    const bytes = this.#pendingBytes;
    this.#pending = [];
    this.#pendingBytes = 0;
    const [first] = pending;
    if (first === undefined || !this.#open || this.#ended) return;
    const waiting = this.#socket.writableLength;
    if (waiting + bytes <= DATABASE_BUFFERED_BYTES_MAX)
      this.#socket.write(pending.length === 1 ? first : Buffer.concat(pending, bytes));
    else
      this.#end(
        new NotSentError(
          `A statement of ${bytes} bytes was not sent to the database at ${this.#place}: ${waiting} bytes wait already, and ${DATABASE_BUFFERED_BYTES_MAX} is the limit.`,
        ),
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
