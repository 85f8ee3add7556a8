import { setTimeout as delay } from "node:timers/promises";
import { FlurryError } from "../errors/errors.ts";

/** @throws FlurryError ABORTED when the signal says so */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw aborted(signal);
}

/**
 * Waits no longer than until the signal; the work itself goes on.
 *
 * @throws FlurryError ABORTED, or what the work throws
 */
export async function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return await work;
  const cut = Promise.withResolvers<never>();
  const onAbort = () => cut.reject(aborted(signal));
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work, cut.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}

/** @throws FlurryError ABORTED */
export async function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  throwIfAborted(signal);
  try {
    await delay(Math.max(ms, 0), undefined, { signal });
  } catch (error) {
    if (signal?.aborted) throw aborted(signal);
    throw error;
  }
}

function aborted(signal: AbortSignal): FlurryError {
  return new FlurryError("ABORTED", "Aborted by the caller", { cause: signal.reason });
}
