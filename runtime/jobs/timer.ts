import { throwIfAborted } from "../vm/qemu-process.ts";

/** Calls back once after `ms`, unless it is disposed before. Tests have one that goes by their clock. */
export type After = (ms: number, callback: () => void) => Disposable;

/** Longest wait that timers can hold; whoever waits longer looks again then. */
const MAX_MS = 3_600_000;

export function systemAfter(ms: number, callback: () => void): Disposable {
  const timer = setTimeout(callback, Math.min(Math.max(0, ms), MAX_MS));
  return { [Symbol.dispose]: () => clearTimeout(timer) };
}

/**
 * Waits for a time.
 *
 * @throws FlurryError ABORTED
 */
export async function wait(after: After, ms: number, signal?: AbortSignal): Promise<void> {
  throwIfAborted(signal);
  const { promise, resolve } = Promise.withResolvers<void>();
  using _timer = after(ms, resolve);
  signal?.addEventListener("abort", () => resolve(), { once: true });
  await promise;
  throwIfAborted(signal);
}
