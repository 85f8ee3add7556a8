/** Calls back once after `ms`, unless it is disposed before. Tests have one that goes by their clock. */
export type After = (ms: number, callback: () => void) => Disposable;

/** Longest wait of one timer; whoever waits longer looks again then. */
const MAX_MS = 3_600_000;

export function systemAfter(ms: number, callback: () => void): Disposable {
  // Timers leave fractions out: they would come too early, and whoever looks then finds nothing due yet.
  const timer = setTimeout(callback, Math.min(Math.ceil(Math.max(0, ms)), MAX_MS));
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}
