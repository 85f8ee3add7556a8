import { orAborted, throwIfAborted } from "../waiting.ts";

/** Bulk requests at a time, and while a guest waits for others. */
const MOST = 32;
const MOST_BESIDE_URGENT = 1;
/** Pages in them, above which no further request begins. */
const MOST_PAGES = 1024;

/** How much may be on its way that nobody waits for: enough to fill a network, but not its queues. */
export class BulkSlots {
  readonly #waiting: (() => void)[] = [];
  #requests = 0;
  #pages = 0;
  #urgent = 0;

  /**
   * Waits for room for one request, first come, first served. It must be given back by `release`.
   *
   * @throws FlurryError ABORTED
   */
  async acquire(signal: AbortSignal | undefined): Promise<void> {
    throwIfAborted(signal);
    const turn = Promise.withResolvers<void>();
    this.#waiting.push(turn.resolve);
    this.#grant();
    try {
      await orAborted(turn.promise, signal);
    } catch (error) {
      const at = this.#waiting.indexOf(turn.resolve);
      if (at >= 0) this.#waiting.splice(at, 1);
      else this.release(0);
      throw error;
    }
  }

  /** Begins a request at once: a part of one that had room. */
  take(pages: number): void {
    this.#requests += 1;
    this.#pages += pages;
  }

  /** Says how many pages the request has. */
  charge(pages: number): void {
    this.#pages += pages;
  }

  /** @param pages - as they were charged */
  release(pages: number): void {
    this.#requests -= 1;
    this.#pages -= pages;
    this.#grant();
  }

  /** A guest waits for a request; until `urgentEnds`. */
  urgentBegins(): void {
    this.#urgent += 1;
  }

  urgentEnds(): void {
    this.#urgent -= 1;
    this.#grant();
  }

  #grant(): void {
    const most = this.#urgent > 0 ? MOST_BESIDE_URGENT : MOST;
    while (this.#requests < most && this.#pages < MOST_PAGES) {
      const next = this.#waiting.shift();
      if (!next) return;
      this.#requests += 1;
      next();
    }
  }
}
