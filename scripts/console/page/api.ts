/** Calls of the page: the API of the console, the functions, and the demo user. */
import { signal } from "@preact/signals";

const USER_KEY = "lotus-demo-user";
const OPEN_MILLISECONDS_MAX = 20_000;
const OPEN_STEP_MILLISECONDS = 100;
const HEX = 16;

/** The answer to a call, with its time. */
export interface Answer {
  readonly status: number;
  readonly milliseconds: number;
  readonly headers: readonly (readonly [string, string])[];
  readonly text: string;
}

/** A user of this page. */
export interface DemoUser {
  readonly id: string;
  readonly email: string;
  readonly password: string;
  readonly token: string;
}

export interface Call {
  readonly method: string;
  readonly path: string;
  readonly body?: string | undefined;
  readonly headers?: Readonly<Record<string, string>>;
}

/** An expected failure. Its message is a sentence for the person at the page. */
export class Failure extends Error {}

let token = document.querySelector<HTMLMetaElement>('meta[name="lotus-token"]')?.content ?? "";

/** Lotus has a new token after a restart. The page of this gateway contains it. */
async function renewToken(): Promise<void> {
  const text = await (await fetch("/")).text();
  token = /name="lotus-token" content="([^"]+)"/.exec(text)?.[1] ?? token;
}

async function read<T>(answer: Response): Promise<T> {
  const body = (await answer.json()) as T & { detail?: string };
  if (!answer.ok) throw new Failure(body.detail ?? `The gateway answered ${answer.status}.`);
  return body;
}

async function attempt(address: string, options: RequestInit = {}): Promise<Response> {
  try {
    return await fetch(address, options);
  } catch {
    throw new Failure("Lotus does not answer. Is it running?");
  }
}

/** Reads from the console. @throws {Failure} a sentence */
export async function get<T>(path: string): Promise<T> {
  return read<T>(await attempt(`/console/api/${path}`));
}

/** Reads the OpenAPI document. @throws {Failure} a sentence */
export async function getOpenApi<T>(): Promise<T> {
  return read<T>(await attempt("/openapi.json"));
}

/** Changes something through the console. @throws {Failure} a sentence */
export async function post<T>(path: string): Promise<T> {
  const send = () => attempt(`/console/api/${path}`, { method: "POST", headers: { "lotus-console": token } });
  let answer = await send();
  if (answer.status === 403) {
    await renewToken();
    answer = await send();
  }
  return read<T>(answer);
}

/** Calls a function. @throws {Failure} when no answer comes */
export async function callFunction({ method, path, body, headers = {} }: Call): Promise<Answer> {
  const began = performance.now();
  try {
    const answer = await fetch(path, {
      method,
      headers: { ...(body !== undefined && { "content-type": "application/json" }), ...headers },
      ...(body !== undefined && { body }),
    });
    const text = await answer.text();
    return {
      status: answer.status,
      milliseconds: performance.now() - began,
      headers: [...answer.headers],
      text,
    };
  } catch {
    throw new Failure("No answer came. Is Lotus running?");
  }
}

function storedUser(): DemoUser | undefined {
  try {
    return JSON.parse(localStorage.getItem(USER_KEY) ?? "null") ?? undefined;
  } catch {
    return undefined;
  }
}

export const demoUser = signal<DemoUser | undefined>(storedUser());

function keep(user: DemoUser): DemoUser {
  demoUser.value = user;
  localStorage.setItem(USER_KEY, JSON.stringify(user));
  return user;
}

const randomHex = (bytes: number) =>
  [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(HEX).padStart(2, "0")).join("");

/** Returns the trace that an answer names. */
export function traceOf({ headers }: Answer): string {
  return headers.find(([name]) => name === "traceresponse")?.[1].split("-")[1] ?? "";
}

export const bearer = (user: DemoUser) => ({ authorization: `Bearer ${user.token}` });

/** Makes the failure of an answer: a sentence with the status and the detail of the problem (RFC 9457). */
function failureOf(what: string, { status, text }: Pick<Answer, "status" | "text">): Failure {
  let detail: string | undefined;
  try {
    detail = (JSON.parse(text) as { detail?: string }).detail;
  } catch {
    // Another server than Lotus answered.
  }
  return new Failure(`The ${what} was answered ${status}.${detail === undefined ? "" : ` ${detail}`}`);
}

async function logIn(email: string, password: string, id: string): Promise<DemoUser | undefined> {
  const body = JSON.stringify({ email, password });
  const { status, text } = await callFunction({ method: "POST", path: "/profile/login", body });
  if (status !== 200) return undefined;
  return keep({ id, email, password, token: (JSON.parse(text) as { token: string }).token });
}

async function register(): Promise<DemoUser> {
  const email = `demo-${randomHex(4)}@example.com`;
  const password = `${randomHex(8)} Demo`;
  const body = JSON.stringify({ email, password });
  const { status, text } = await callFunction({ method: "POST", path: "/profile/register", body });
  if (status !== 201) throw failureOf("registration", { status, text });
  const user = await logIn(email, password, (JSON.parse(text) as { id: string }).id);
  if (user === undefined) throw new Failure("The demo user cannot log in.");
  return user;
}

/** Returns the demo user with a valid token. Registers one, or logs in again, when that is necessary. @throws {Failure} */
export async function ensureUser(): Promise<DemoUser> {
  const known = demoUser.value;
  if (known === undefined) return register();
  const { status } = await callFunction({ method: "GET", path: "/profile/me", headers: bearer(known) });
  if (status === 200) return known;
  return (await logIn(known.email, known.password, known.id)) ?? register();
}

const isNotOpen = ({ status, text }: Answer) => status === 409 && text.includes("account-not-open");

/** Puts 100 on the account of the demo user and pays a subscription. Returns the trace of the payment. @throws {Failure} */
export async function makePayment(): Promise<string> {
  const user = await ensureUser();
  const deposit = { method: "POST", path: "/billing/add-money?money=100", headers: bearer(user) };
  const until = performance.now() + OPEN_MILLISECONDS_MAX;
  let added = await callFunction(deposit);
  // The account opens when the event of the registration is delivered.
  while (isNotOpen(added) && performance.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, OPEN_STEP_MILLISECONDS));
    added = await callFunction(deposit);
  }
  if (added.status !== 200) throw failureOf("deposit", added);
  const subscriptions = await callFunction({ method: "GET", path: "/order/subscriptions" });
  const [cheapest] = [...(JSON.parse(subscriptions.text) as { id: number; price: number }[])].sort(
    (a, b) => a.price - b.price,
  );
  const paid = await callFunction({
    method: "POST",
    path: `/order/pay?idSubscription=${cheapest?.id ?? 1}`,
    headers: bearer(user),
  });
  if (paid.status !== 200) throw failureOf("payment", paid);
  return traceOf(paid);
}
