// A clock that jumps: `node --require clock.cjs`. SIGUSR2 moves the wall clock of the process by ten minutes, forward and backward
// by turns, and the next SIGUSR2 moves it back. Timers and performance.now() continue, as on a machine whose clock is set.
"use strict";
const JUMP_MILLISECONDS = 600_000;
const RealDate = Date;
let offset = 0;
let jump = JUMP_MILLISECONDS;
const now = () => RealDate.now() + offset;
globalThis.Date = new Proxy(RealDate, {
  apply: () => new RealDate(now()).toString(),
  construct: (target, given, newTarget) => Reflect.construct(target, given.length === 0 ? [now()] : given, newTarget),
  get: (target, name) => (name === "now" ? now : Reflect.get(target, name)),
});
process.on("SIGUSR2", () => {
  offset = offset === 0 ? jump : 0;
  if (offset === 0) jump = -jump;
});
