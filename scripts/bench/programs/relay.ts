/** The relay as a process of its own, as in a cluster. Run by ../world.ts. */
import { startRelay } from "../../relay.ts";

const relay = await startRelay(
  { host: "127.0.0.1", port: 0 },
  { host: "127.0.0.1", port: Number(process.env.POSTGRES_PORT) },
);
process.send?.({ port: Number(new URL(relay.url).port) });
process.once("disconnect", () => process.exit());
