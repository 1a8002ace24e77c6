/** Finds out which user of this machine has opened a connection: the console serves its own user only. */
import { readFile } from "node:fs/promises";
import type { Socket } from "node:net";

/** The loopback addresses as /proc/net writes them (proc(5)): 127.0.0.1, the same address in IPv6, and ::1. */
const LOOPBACK = ["0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"];
/** The columns of a line: number, local address, remote address, state, queues, timer, retransmissions, user. */
const [LOCAL, REMOTE, USER] = [1, 2, 7];

/**
 * Returns the user of a connection of this machine.
 * @param table the content of /proc/net/tcp or /proc/net/tcp6
 * @param clientPort the port of the side that opened the connection
 * @param serverPort the port that it was opened to
 * @returns undefined when the table has no such connection
 */
export function userOf(table: string, clientPort: number, serverPort: number): number | undefined {
  const hexadecimal = (port: number) => port.toString(16).toUpperCase().padStart(4, "0");
  for (const line of table.split("\n")) {
    const columns = line.trim().split(/\s+/);
    const [address = "", port] = (columns[LOCAL] ?? "").split(":");
    const [, remotePort] = (columns[REMOTE] ?? "").split(":");
    if (!LOOPBACK.includes(address) || port !== hexadecimal(clientPort) || remotePort !== hexadecimal(serverPort))
      continue;
    return Number(columns[USER]);
  }
  return undefined;
}

/** Returns the users who may use the console: the user of this process, the user who called sudo, and root, who may do anything. */
function ownUsers(): number[] {
  const sudo = process.env.SUDO_UID;
  return [0, process.getuid?.() ?? 0, ...(process.getuid?.() === 0 && sudo !== undefined ? [Number(sudo)] : [])];
}

/**
 * Returns whether this user has opened a connection. Only Linux lists the connections of all users; elsewhere the answer is true.
 * @param socket the server's side of the connection
 */
export async function isOfThisUser({ remotePort = 0, localPort = 0 }: Socket): Promise<boolean> {
  for (const file of ["/proc/net/tcp", "/proc/net/tcp6"]) {
    const table = await readFile(file, "utf8").catch(() => "");
    const user = userOf(table, remotePort, localPort);
    if (user !== undefined) return ownUsers().includes(user);
  }
  return true;
}
