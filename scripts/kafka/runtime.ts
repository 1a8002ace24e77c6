/** A way to run brokers: as Java processes, or in containers. */
import type { Node, SecuredListener } from "./properties.ts";

/** The cluster to run. */
export interface KafkaPlan {
  readonly brokers: 1 | 3;
  /** Where its data, logs and process numbers are kept. */
  readonly folder: string;
  readonly secured: SecuredListener | undefined;
  readonly onProgress: (line: string) => void;
}

/** One cluster, and what differs between the ways to run it. */
export interface Runtime {
  readonly nodes: readonly Node[];
  /** Ends brokers of an earlier run and creates missing storage. Resolves to the command to run. */
  prepare(index: number): Promise<string[]>;
  /** Sends the signal to a broker that is not the started process, such as a container. */
  signal?(index: number, signal: "SIGTERM" | "SIGKILL"): Promise<void>;
  /** Removes the data of a broker that is down. */
  erase(index: number): Promise<void>;
  /** All brokers are down. */
  stopped(): Promise<void>;
}
