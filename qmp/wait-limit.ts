/** How long to wait, and who may end the wait early. */
export interface WaitOptions {
  /**
   * Milliseconds until the wait fails with QMP_TIMEOUT; `Infinity` waits without limit.
   *
   * @default the client's `timeoutMs`
   */
  timeoutMs?: number | undefined;
  /** Ends the wait with ABORTED. */
  signal?: AbortSignal | undefined;
}

/** The longest delay that setTimeout takes; a longer one would fire at once. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** @throws RangeError when the value is not a time above 0. */
export function checkTimeout(timeoutMs: number): void {
  if (!(timeoutMs > 0)) throw new RangeError(`QMP timeout must be above 0 ms, got ${timeoutMs}`);
}

/**
 * Calls `onEnd` once when the time is up or the signal fires. The caller looks at an already aborted
 * signal itself, before it acts.
 *
 * @returns A function that calls it off.
 */
export function limitWait(
  timeoutMs: number,
  signal: AbortSignal | undefined,
  onEnd: (why: "timeout" | "abort") => void,
): () => void {
  const timer =
    timeoutMs > MAX_TIMER_MS
      ? undefined
      : setTimeout(() => {
          release();
          onEnd("timeout");
        }, timeoutMs);
  const onAbort = (): void => {
    release();
    onEnd("abort");
  };
  const release = (): void => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  };
  signal?.addEventListener("abort", onAbort);
  return release;
}
