/** A TCP proxy in front of Postgres that cuts, slows, freezes and partitions connections. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

/** How the proxy treats connections. */
export type Disturbance =
  | { readonly kind: "none" }
  /** Bytes wait in both directions. */
  | { readonly kind: "slow"; readonly milliseconds: number }
  /** No byte passes, and no connection is closed. The peers receive no FIN and no RST. The bytes arrive later. */
  | { readonly kind: "frozen" }
  /** The bytes of every open connection are lost for good, and no connection is closed: a peer that vanished without FIN or RST. */
  | { readonly kind: "vanished" }
  /** New connections are closed at once; open ones are reset. */
  | { readonly kind: "refused" }
  /** Each packet may reset its connection, and arrives late. */
  | { readonly kind: "unstable"; readonly milliseconds: number; resets(): boolean }
  /** Drops the next answers of Postgres and resets their connections: the statement is committed, and the client does not learn it. */
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
  /** The bytes of this connection are lost, also after the disturbance. */
  vanished: boolean;
}

/**
 * Starts the proxy on a free port of 127.0.0.1.
 * @param target returns the port of Postgres on 127.0.0.1, which may change when the server is replaced
 */
export async function startPostgresProxy(target: () => number): Promise<PostgresProxy> {
  let disturbance: Disturbance = { kind: "none" };
  const pairs = new Set<Pair>();
  const held: (() => void)[] = [];

  const pass = (pair: Pair, from: Socket, to: Socket) => {
    const reset = () => {
      pair.client.resetAndDestroy();
      pair.server.destroy();
    };
    // One queue for each direction: a packet may not overtake an earlier packet that is delayed.
    const queue: { readonly at: number; readonly forward: () => void }[] = [];
    const pump = () => {
      for (let [next] = queue; next !== undefined && next.at <= performance.now(); [next] = queue) {
        queue.shift();
        next.forward();
      }
      if (queue[0] !== undefined) setTimeout(pump, Math.max(1, queue[0].at - performance.now()));
    };
    const later = (milliseconds: number, forward: () => void) => {
      if (queue.length === 0 && milliseconds === 0) return forward();
      queue.push({ at: performance.now() + milliseconds, forward });
      if (queue.length === 1) setTimeout(pump, milliseconds);
    };
    from.on("data", (bytes: Buffer) => {
      const forward = () => {
        if (!to.destroyed && !pair.vanished) to.write(bytes);
      };
      if (pair.vanished) return;
      if (disturbance.kind === "frozen") held.push(() => later(0, forward));
      else if (disturbance.kind === "slow") later(disturbance.milliseconds, forward);
      else if (disturbance.kind === "unstable") {
        if (disturbance.resets()) reset();
        else later(disturbance.milliseconds, forward);
      } else if (disturbance.kind === "cut-answers" && to === pair.client) reset();
      else later(0, forward);
    });
  };

  const server = createServer({ noDelay: true }, (client) => {
    if (disturbance.kind === "refused") return void client.resetAndDestroy();
    const upstream = connect({ host: "127.0.0.1", port: target(), noDelay: true });
    const pair: Pair = { client, server: upstream, vanished: false };
    pairs.add(pair);
    pass(pair, client, upstream);
    pass(pair, upstream, client);
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
      if (next.kind === "vanished") for (const pair of pairs) pair.vanished = true;
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
