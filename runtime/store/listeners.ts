import { getLogger } from "@logtape/logtape";

/** Those who want to know of a change. One that throws is logged and stops nobody. */
export class Listeners<Args extends unknown[] = []> {
  readonly #listeners = new Set<(...args: Args) => void>();

  add(listener: (...args: Args) => void): Disposable {
    // Wrapped, so that the same function can be added twice and removed once.
    const own = (...args: Args) => listener(...args);
    this.#listeners.add(own);
    return { [Symbol.dispose]: () => void this.#listeners.delete(own) };
  }

  emit(...args: Args): void {
    for (const listener of this.#listeners) {
      try {
        listener(...args);
      } catch (error) {
        getLogger(["flurry", "store"]).error("A listener of the store failed: {error}", { error });
      }
    }
  }
}
