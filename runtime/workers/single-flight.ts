import { abortError, throwIfAborted } from "../vm/qemu-process.ts";

interface Shared {
  done: Promise<void>;
  abort: AbortController;
  callers: number;
}

/** Work that is done once for all who ask for it at the same time. */
export class SingleFlight implements AsyncDisposable {
  readonly #joinable = new Map<string, Shared>();
  /** Also those that everybody has left and that are cleaning up. */
  readonly #running = new Set<Shared>();
  readonly #stop = new AbortController();

  /**
   * Waits for the work of this key, which begins if it is not under way. A caller who is aborted
   * leaves the others alone; with the last one the work ends, and that one waits for its end.
   *
   * @throws whatever the work throws; FlurryError ABORTED
   */
  async join(key: string, work: (signal: AbortSignal) => Promise<void>, signal: AbortSignal): Promise<void> {
    throwIfAborted(signal);
    throwIfAborted(this.#stop.signal);
    const shared = this.#joinable.get(key) ?? this.#begin(key, work);
    shared.callers += 1;
    const left = Promise.withResolvers<never>();
    const onAbort = () => left.reject(abortError(signal));
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([shared.done, left.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
      shared.callers -= 1;
      if (shared.callers === 0) await this.#end(key, shared);
    }
  }

  #begin(key: string, work: (signal: AbortSignal) => Promise<void>): Shared {
    const abort = new AbortController();
    const done = work(AbortSignal.any([abort.signal, this.#stop.signal]));
    const shared: Shared = { done, abort, callers: 0 };
    const over = () => {
      this.#running.delete(shared);
      if (this.#joinable.get(key) === shared) this.#joinable.delete(key);
    };
    done.then(over, over);
    this.#joinable.set(key, shared);
    this.#running.add(shared);
    return shared;
  }

  async #end(key: string, shared: Shared): Promise<void> {
    // Whoever comes from now on begins anew.
    if (this.#joinable.get(key) === shared) this.#joinable.delete(key);
    shared.abort.abort();
    await Promise.allSettled([shared.done]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.allSettled([...this.#running].map(({ done }) => done));
  }
}
