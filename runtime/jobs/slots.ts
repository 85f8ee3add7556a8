import { abortError, throwIfAborted } from "../vm/qemu-process.ts";

/** Places for running attempts. Who waits for one comes before whoever would just take one. */
export class Slots {
  readonly #total: () => number;
  readonly #onFree: () => void;
  readonly #waiting: (() => void)[] = [];
  #used = 0;

  /** @param onFree - called when a place is free that nobody has waited for */
  constructor(total: () => number, onFree: () => void) {
    this.#total = total;
    this.#onFree = onFree;
  }

  get used(): number {
    return this.#used;
  }

  /** Whether `take` may be called. */
  get free(): boolean {
    return this.#waiting.length === 0 && this.#used < this.#total();
  }

  /** Takes a place, which is given back when disposed. */
  take(): Disposable {
    this.#used += 1;
    let held = true;
    return {
      [Symbol.dispose]: () => {
        if (!held) return;
        held = false;
        this.#used -= 1;
        const next = this.#used < this.#total() ? this.#waiting.shift() : undefined;
        if (next) next();
        else this.#onFree();
      },
    };
  }

  /** Waits for a place. @throws FlurryError ABORTED */
  async acquire(signal: AbortSignal): Promise<Disposable> {
    throwIfAborted(signal);
    if (this.free) return this.take();
    const { promise, resolve, reject } = Promise.withResolvers<Disposable>();
    const give = () => resolve(this.take());
    const onAbort = () => {
      const at = this.#waiting.indexOf(give);
      if (at < 0) return;
      this.#waiting.splice(at, 1);
      reject(abortError(signal));
    };
    this.#waiting.push(give);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      return await promise;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }
}
