/**
 * Waits for changes of one thing among those that a source tells of. What happens between two waits is
 * not missed: the next wait ends at once.
 */
export class Watch implements Disposable {
  readonly #subscription: Disposable;
  #changed = false;
  #wake: (() => void) | undefined;

  /** @param subscribe - of a store, such as `onChange` */
  constructor(subscribe: (listener: (id: string) => void) => Disposable, id: string) {
    this.#subscription = subscribe((changed) => {
      if (changed !== id) return;
      this.#changed = true;
      this.#wake?.();
    });
  }

  /** Waits for a change, for `ms`, or for the signal. True after a change. */
  async next(ms: number, signal: AbortSignal): Promise<boolean> {
    if (!this.#changed && !signal.aborted) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, ms);
      const onAbort = () => resolve();
      signal.addEventListener("abort", onAbort, { once: true });
      this.#wake = resolve;
      await promise;
      this.#wake = undefined;
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    }
    const changed = this.#changed;
    this.#changed = false;
    return changed;
  }

  [Symbol.dispose](): void {
    this.#subscription[Symbol.dispose]();
  }
}

/**
 * Reads, and again after each change, until it has read enough or has waited for `waitMs`.
 *
 * @param signal - fires when nobody waits any more
 * @returns what it has read last
 */
export async function readUntil<T>(
  watch: Watch,
  read: () => T | Promise<T>,
  isEnough: (value: T) => boolean,
  { waitMs, signal }: { waitMs: number; signal: AbortSignal },
): Promise<T> {
  const end = performance.now() + waitMs;
  for (;;) {
    const value = await read();
    const leftMs = end - performance.now();
    if (isEnough(value) || leftMs <= 0 || signal.aborted) return value;
    // Never below a millisecond of it: it would be read again and again.
    await watch.next(Math.ceil(leftMs), signal);
  }
}
