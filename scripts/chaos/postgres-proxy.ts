/** A TCP proxy in front of Postgres that cuts, slows, freezes and partitions connections. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** How the proxy treats connections. */
export type Disturbance =
  | { readonly kind: "none" }
  /** Bytes wait in both directions. */
  | { readonly kind: "slow"; readonly milliseconds: number }
  /** No byte passes, and no connection is closed. The peers receive no FIN and no RST. */
  | { readonly kind: "frozen" }
  /** New connections are closed at once; open ones are reset. */
  | { readonly kind: "refused" }
  /** The next answers of Postgres are thrown away and their connections reset: the statement was committed, the client does not know it. */
  | { readonly kind: "cut-answers" };

export interface PostgresProxy {
  readonly port: number;
  /** Connections that are open. */
  readonly connections: number;
  disturb(disturbance: Disturbance): void;
  /** Closes all connections and the listener. */
  stop(): Promise<void>;
}

interface Pair {
  readonly client: Socket;
  readonly server: Socket;
}

/**
 * Starts the proxy on a free port of 127.0.0.1.
 * @param target returns the port of Postgres on 127.0.0.1, which may change when the server is replaced
 */
export async function startPostgresProxy(target: () => number): Promise<PostgresProxy> {
  let disturbance: Disturbance = { kind: "none" };
  const pairs = new Set<Pair>();
  const held: (() => void)[] = [];

  const pass = (from: Socket, to: Socket, isAnswer: boolean) => {
    from.on("data", (bytes: Buffer) => {
      const forward = () => {
        if (!to.destroyed) to.write(bytes);
      };
      if (disturbance.kind === "frozen") held.push(forward);
      else if (disturbance.kind === "slow") setTimeout(forward, disturbance.milliseconds);
      else if (disturbance.kind === "cut-answers" && isAnswer) {
        to.resetAndDestroy();
        from.destroy();
      } else forward();
    });
  };

  const server = createServer({ noDelay: true }, (client) => {
    if (disturbance.kind === "refused") return void client.resetAndDestroy();
    const upstream = connect({ host: "127.0.0.1", port: target(), noDelay: true });
    const pair = { client, server: upstream };
    pairs.add(pair);
    pass(client, upstream, false);
    pass(upstream, client, true);
    const end = () => {
      pairs.delete(pair);
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) socket.on("error", end).on("close", end);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  return {
    port: (server.address() as AddressInfo).port,
    get connections() {
      return pairs.size;
    },
    disturb(next) {
      disturbance = next;
      if (next.kind === "refused") for (const { client } of pairs) client.resetAndDestroy();
      if (next.kind !== "frozen") for (const forward of held.splice(0)) forward();
    },
    async stop() {
      for (const { client, server: upstream } of pairs) {
        client.destroy();
        upstream.destroy();
      }
      server.close();
      await once(server, "close");
    },
  };
}
