/** TCP ports of this machine that nobody listens on. */
import { once } from "node:events";
import { createServer } from "node:net";

/**
 * Below the range that systems take clients' ports from: while a broker is down, a client's own connection could otherwise
 * sit on its port, even one that tries to reach that very broker.
 */
const PORT_MIN = 20_000;
const PORT_MAX = 29_999;
const TRIES_MAX = 1_000;

/** Whether a server could listen on this port of 127.0.0.1 now. */
export async function isFree(port: number): Promise<boolean> {
  const server = createServer();
  try {
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    server.close();
    await once(server, "close");
    return true;
  } catch {
    return false;
  }
}

/** That many different free ports, and none of those that somebody is about to take. */
export async function freePorts(count: number, except: readonly number[] = []): Promise<number[]> {
  const found = new Set<number>();
  for (let tries = 0; found.size < count; tries++) {
    if (tries > TRIES_MAX) throw new Error(`No ${count} free ports between ${PORT_MIN} and ${PORT_MAX}.`);
    const port = PORT_MIN + Math.floor(Math.random() * (PORT_MAX - PORT_MIN + 1));
    if (!found.has(port) && !except.includes(port) && (await isFree(port))) found.add(port);
  }
  return [...found];
}
