/** Something that waits for its turn. */
export interface Queued {
  /** Order of arrival. */
  readonly number: number;
  /** Monotonic time until which it may wait. */
  readonly deadline: number;
}

/** Those who wait, in the order in which they came; deadlines are in the same order. */
export class WaitQueue<W extends Queued> {
  readonly #waiting: W[] = [];

  get size(): number {
    return this.#waiting.length;
  }

  /** The first deadline. */
  get deadline(): number | undefined {
    return this.#waiting[0]?.deadline;
  }

  /** Those who wait now, also while some of them are removed. */
  all(): W[] {
    return [...this.#waiting];
  }

  /** Adds one at the end, or, one who had left it already, before all who came later. */
  add(waiter: W): void {
    let at = this.#waiting.length;
    while (at > 0 && this.#waiting[at - 1]!.number > waiter.number) at -= 1;
    this.#waiting.splice(at, 0, waiter);
  }

  /** Removes one. Returns false if it does not wait here. */
  delete(waiter: W): boolean {
    const at = this.#waiting.indexOf(waiter);
    if (at >= 0) this.#waiting.splice(at, 1);
    return at >= 0;
  }

  /** Those whose deadline has come. */
  due(now: number): W[] {
    const first = this.#waiting.findIndex(({ deadline }) => deadline > now);
    return first < 0 ? this.all() : this.#waiting.slice(0, first);
  }
}
