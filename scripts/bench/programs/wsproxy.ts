/** The wsproxy as a process of its own, as in a cluster. Run by ../world.ts. */
import { startWsproxy } from "../../wsproxy.ts";

const wsproxy = await startWsproxy(
  { host: "127.0.0.1", port: 0 },
  { host: "127.0.0.1", port: Number(process.env.POSTGRES_PORT) },
);
process.send?.({ port: Number(new URL(wsproxy.url).port) });
process.once("disconnect", () => process.exit());
