/** Text of times, durations, amounts and ids. */
import { signal } from "@preact/signals";

const UTC_KEY = "lotus-utc";
const MINOR_UNITS = 100n;

/** Whether times are shown in UTC. */
export const utc = signal(localStorage.getItem(UTC_KEY) === "1");

/** Changes between UTC and the local time. */
export function toggleUtc(): void {
  utc.value = !utc.value;
  localStorage.setItem(UTC_KEY, utc.value ? "1" : "0");
}

const parts = {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hourCycle: "h23",
} as const;
// A formatter is costly to make and cheap to use.
const localClock = new Intl.DateTimeFormat("en-GB", parts);
const utcClock = new Intl.DateTimeFormat("en-GB", { ...parts, timeZone: "UTC" });

/** Returns `14:03:22.118`. @param microseconds since 1970 */
export function clock(microseconds: number): string {
  return (utc.value ? utcClock : localClock).format(microseconds / 1000);
}

/** Returns a duration with its unit, such as `4.2 ms`. */
export function duration(microseconds: number): string {
  const milliseconds = microseconds / 1000;
  if (milliseconds < 0.05) return "0 ms";
  if (milliseconds < 100) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1_000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes} min ${Math.round(seconds % 60)} s`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Returns how long ago a moment was. */
export function age(microseconds: number, now = Date.now() * 1000): string {
  const seconds = Math.max(0, Math.round((now - microseconds) / 1_000_000));
  return seconds < 60 ? `${seconds} s` : duration(seconds * 1_000_000);
}

/** Returns minor units as an amount: 89050 -> 890.50 */
export function money(minorUnits: string | number): string {
  const units = BigInt(minorUnits);
  const absolute = units < 0n ? -units : units;
  const text = `${(absolute / MINOR_UNITS).toLocaleString("en-GB").replaceAll(",", " ")}.${String(absolute % MINOR_UNITS).padStart(2, "0")}`;
  return units < 0n ? `−${text}` : text;
}

/** Returns a whole number with thin groups: 1 204 */
export const count = (value: number): string => value.toLocaleString("en-GB").replaceAll(",", " ");

/** Returns the start of an id. */
export const short = (id: string): string => id.slice(0, 8);

/** Returns the end of an id, which differs between ids of the same moment (UUIDv7). */
export const tail = (id: string): string => id.slice(-8);

/** Returns bytes with a unit. */
export const bytes = (value: number): string => (value < 1024 ? `${value} B` : `${Math.round(value / 1024)} KiB`);

/** Returns JSON with line ends; other text is returned unchanged. */
export function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
