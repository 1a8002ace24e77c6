/** The address of the page: `#/events/ID?filter=…`. Each object has an address, and Back works. */
import { signal } from "@preact/signals";

export interface Route {
  /** The page, such as `events`. */
  readonly page: string;
  /** The object, or empty. */
  readonly id: string;
  readonly query: URLSearchParams;
}

function parse(): Route {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "", ...rest] = path.split("/");
  return { page: page || "overview", id: decodeURIComponent(rest.join("/")), query: new URLSearchParams(query) };
}

export const route = signal(parse());
addEventListener("hashchange", () => {
  route.value = parse();
});

/** Returns the address of a page or an object. */
export function href(page: string, id = "", query: Readonly<Record<string, string>> = {}): string {
  const text = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "")).toString();
  return `#/${page}${id === "" ? "" : `/${encodeURIComponent(id)}`}${text === "" ? "" : `?${text}`}`;
}

/** Opens a page or an object. */
export function open(page: string, id = "", query: Readonly<Record<string, string>> = {}): void {
  location.hash = href(page, id, query);
}

/** Replaces parts of the query without a step in the history. */
export function setQuery(change: Readonly<Record<string, string>>): void {
  const { page, id, query } = route.value;
  history.replaceState(null, "", href(page, id, { ...Object.fromEntries(query), ...change }));
  route.value = parse();
}
