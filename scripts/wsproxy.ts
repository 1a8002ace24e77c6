/**
 * A WebSocket in front of a Postgres, as Neon has its wsproxy: the driver speaks only that. One fixed Postgres, never one that a
 * client names.
 *   npm exec tsx scripts/wsproxy.ts -- --listen 0.0.0.0:8081 --postgres localhost:5432
 */
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { parseArgs } from "node:util";
import { type WebSocket, WebSocketServer } from "ws";
import { runCommand, UsageError } from "./cli/command.ts";

export const CONNECTIONS_MAX = 500;
const MESSAGE_BYTES_MAX = 64 * 1024 * 1024;
const BUFFERED_BYTES_MAX = 1024 * 1024;
const CONNECT_MILLISECONDS_MAX = 5_000;

export interface Address {
  readonly host: string;
  readonly port: number;
}

export interface Wsproxy {
  /** ws://host:port, for DATABASE_WSPROXY_URL. */
  readonly url: string;
  /** Cuts every connection, as a network would. */
  cut(): void;
  stop(): Promise<void>;
}

function join(socket: WebSocket, postgres: Address): void {
  const tcp = connect({ ...postgres, noDelay: true });
  const late = setTimeout(() => tcp.destroy(new Error("connecting took too long")), CONNECT_MILLISECONDS_MAX);
  tcp.once("connect", () => clearTimeout(late));
  socket.on("message", (data: Buffer) => {
    // What Postgres no longer takes must not keep the WebSocket's own end from being heard: no drain would come.
    if (tcp.destroyed || tcp.write(data)) return;
    socket.pause();
    tcp.once("drain", () => socket.resume());
  });
  tcp.on("data", (data) => {
    socket.send(data, () => tcp.resume());
    if (socket.bufferedAmount > BUFFERED_BYTES_MAX) tcp.pause();
  });
  // Either side's end is the other's; what Postgres had to say has been sent by then.
  tcp.on("error", (error) => socket.close(1011, error.message.slice(0, 100)));
  tcp.on("close", () => {
    clearTimeout(late);
    socket.close();
  });
  socket.on("error", () => tcp.destroy());
  socket.on("close", () => tcp.destroy());
}

/** Starts one. Port 0 takes any free port. Rejects when it cannot listen. */
export async function startWsproxy(listen: Address, postgres: Address): Promise<Wsproxy> {
  const server = createServer((_, response) => response.writeHead(426).end("This address speaks WebSocket only.\n"));
  const sockets = new WebSocketServer({ server, perMessageDeflate: false, maxPayload: MESSAGE_BYTES_MAX });
  sockets.on("connection", (socket, request) => {
    request.socket.setNoDelay(true);
    if (sockets.clients.size > CONNECTIONS_MAX) socket.close(1013, `at most ${CONNECTIONS_MAX} connections`);
    else join(socket, postgres);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(listen.port, listen.host, resolve);
  });
  const cut = () => {
    for (const socket of sockets.clients) socket.terminate();
  };
  return {
    url: `ws://${listen.host}:${(server.address() as AddressInfo).port}`,
    cut,
    async stop() {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** host:port, or an Error that names the option. */
function parseAddress(option: string, text: string): Address {
  const match = /^(.+):(\d{1,5})$/.exec(text);
  if (match?.[1] === undefined) throw new UsageError(`${option} must be host:port; ${JSON.stringify(text)} is not.`);
  return { host: match[1], port: Number(match[2]) };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      listen: { type: "string", default: "127.0.0.1:8081" },
      postgres: { type: "string", default: "127.0.0.1:5432" },
    },
  });
  const wsproxy = await startWsproxy(
    parseAddress("--listen", values.listen),
    parseAddress("--postgres", values.postgres),
  );
  console.log(`${wsproxy.url} leads to Postgres at ${values.postgres}. Ctrl-C ends it.`);
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void wsproxy.stop());
}

if (process.argv[1] === import.meta.filename) runCommand(main);
