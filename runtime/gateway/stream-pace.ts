/** Least time between two looks of a stream, for each stream that is open, in ms. */
const MS_PER_STREAM = 1;

/**
 * Keeps streams from taking the gateway's time: each change of a job wakes all that follow it, and each
 * of them asks the store. The more are open, the more changes each one takes at a time.
 */
export class StreamPace {
  #open = 0;

  /** Counts a stream until it is disposed. */
  open(): Disposable {
    let open = true;
    this.#open += 1;
    return {
      [Symbol.dispose]: () => {
        if (open) this.#open -= 1;
        open = false;
      },
    };
  }

  /** Waits until a stream may look again that looked at `lookedAt` (performance.now()), or for the signal. */
  async wait(lookedAt: number, signal: AbortSignal): Promise<void> {
    const ms = lookedAt + this.#open * MS_PER_STREAM - performance.now();
    if (ms <= 0 || signal.aborted) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    const onAbort = () => resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    await promise;
    clearTimeout(timer);
    signal.removeEventListener("abort", onAbort);
  }
}
