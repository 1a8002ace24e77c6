/** A WebSocket in front of a Postgres, as at Neon: each message is a part of the TCP stream. */
import { type AddressInfo, connect } from "node:net";
import { WebSocketServer } from "ws";

export interface WebSocketPostgres {
  readonly port: number;
  /** The paths that clients have asked for. */
  readonly paths: string[];
  stop(): Promise<void>;
}

/** Starts one on 127.0.0.1 that leads to a port of this machine. */
export async function startWebSocketPostgres(postgresPort: number): Promise<WebSocketPostgres> {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
  const paths: string[] = [];
  server.on("connection", (socket, request) => {
    paths.push(request.url ?? "");
    const tcp = connect({ port: postgresPort, host: "127.0.0.1", noDelay: true });
    socket.on("message", (data: Buffer) => void tcp.write(data));
    tcp.on("data", (data) => socket.send(data));
    socket.on("close", () => tcp.destroy());
    tcp.on("error", () => socket.terminate());
    tcp.on("close", () => socket.terminate());
  });
  await new Promise<void>((resolve, reject) => server.once("listening", resolve).once("error", reject));
  return {
    port: (server.address() as AddressInfo).port,
    paths,
    async stop() {
      for (const socket of server.clients) socket.terminate();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
