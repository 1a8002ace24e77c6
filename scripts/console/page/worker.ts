/** A shared worker: one stream for all tabs. A browser allows six connections to a host, and one stream for each tab would use them up. */

interface SharedScope {
  onconnect: ((event: MessageEvent) => void) | null;
}

const CLOSED = 2;
const AGAIN_MILLISECONDS = 1_000;
const ports = new Set<MessagePort>();
let source: EventSource | undefined;
let state = "connecting";

function tell(message: unknown): void {
  for (const port of ports) port.postMessage(message);
}

function setState(next: string): void {
  state = next;
  tell({ kind: "state", state });
}

/** EventSource does not reconnect after an answer such as 503, so it is created again. Every new tab needs a snapshot. */
function connect(): void {
  source?.close();
  const opened = new EventSource("/console/stream");
  source = opened;
  opened.onopen = () => setState("live");
  opened.onerror = () => {
    setState("reconnecting");
    if (opened.readyState === CLOSED) setTimeout(() => source === opened && connect(), AGAIN_MILLISECONDS);
  };
  for (const kind of ["reset", "batch"])
    opened.addEventListener(kind, (event) => tell({ kind, text: (event as MessageEvent<string>).data }));
}

(self as unknown as SharedScope).onconnect = ({ ports: [port] }) => {
  if (port === undefined) return;
  ports.add(port);
  port.postMessage({ kind: "state", state });
  port.onmessage = ({ data }) => {
    if (data === "bye") ports.delete(port);
    if (ports.size === 0) {
      source?.close();
      source = undefined;
    }
  };
  connect();
};
