/** Finds free TCP ports of this machine. */
import { once } from "node:events";
import { createServer } from "node:net";
import { Refusal } from "../cli/errors.ts";

/**
 * Below the range of ephemeral ports: while a server is down, a client's own connection could otherwise occupy its port, even the
 * connection that tries to reach that server.
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

/** Returns a free port. @throws {Refusal} when every port is taken */
export async function freePort(): Promise<number> {
  const [port = 0] = await freePorts(1);
  return port;
}

/** Returns different free ports that are not in `except`. @throws {Refusal} when too few are free */
export async function freePorts(count: number, except: readonly number[] = []): Promise<number[]> {
  const found = new Set<number>();
  for (let tries = 0; found.size < count; tries++) {
    if (tries > TRIES_MAX) throw new Refusal(`No ${count} free ports between ${PORT_MIN} and ${PORT_MAX}.`);
    const port = PORT_MIN + Math.floor(Math.random() * (PORT_MAX - PORT_MIN + 1));
    if (!found.has(port) && !except.includes(port) && (await isFree(port))) found.add(port);
  }
  return [...found];
}
