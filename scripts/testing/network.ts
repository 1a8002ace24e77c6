/** The network between the functions of a test and Postgres, which a test can cut. */
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface Network {
  readonly port: number;
  /** Ends every connection at once, as a broken network does. New connections succeed. */
  cut(): void;
  /** Stops forwarding bytes on every connection without closing it, as after the loss of a machine or a firewall. New connections succeed. */
  freeze(): void;
  /** Leads new connections to another port of this machine. */
  lead(postgresPort: number): void;
  stop(): Promise<void>;
}

/** Starts a listener on 127.0.0.1 that forwards each connection to a port of this machine. */
export async function startNetwork(postgresPort: number): Promise<Network> {
  let target = postgresPort;
  const sockets = new Set<Socket>();
  const frozen = new Set<Socket>();
  const server = createServer({ noDelay: true }, (client) => {
    const postgres = connect({ port: target, host: "127.0.0.1", noDelay: true });
    for (const [socket, other] of [
      [client, postgres],
      [postgres, client],
    ] as const) {
      sockets.add(socket);
      // A reset on one side ends the other side.
      const end = () => void (frozen.has(socket) || other.destroy());
      socket.on("error", end);
      socket.on("close", () => {
        sockets.delete(socket);
        end();
      });
      socket.pipe(other);
    }
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(0, "127.0.0.1", resolve));
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    port: (server.address() as AddressInfo).port,
    cut,
    lead(port) {
      target = port;
    },
    freeze() {
      for (const socket of sockets) {
        frozen.add(socket);
        socket.unpipe().pause();
      }
    },
    async stop() {
      cut();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
