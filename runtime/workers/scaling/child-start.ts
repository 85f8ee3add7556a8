/** Somebody whom a child is started for. */
export interface Covered {
  /** The child that is on its way for it. */
  cover: ChildStart | undefined;
  /** It will not come. */
  startFailed(error: unknown): void;
}

/** A child on its way. */
export class ChildStart {
  /** Session that it will belong to; "" when it is for all, or for nobody yet. */
  key: string;
  /** Whether it was begun ahead of need. */
  readonly isAhead: boolean;
  readonly abort = new AbortController();
  phase: "admitting" | "forking" = "admitting";
  readonly #waiters = new Set<Covered>();

  constructor(key: string, isAhead = false) {
    this.key = key;
    this.isAhead = isAhead;
  }

  /** Those whom it is for. */
  get covers(): number {
    return this.#waiters.size;
  }

  /** Whether it has not been begun for anybody, nor found somebody since. */
  get isFree(): boolean {
    return this.isAhead && this.covers === 0;
  }

  /** Counts on it for somebody. */
  cover(waiter: Covered): void {
    this.#waiters.add(waiter);
    waiter.cover = this;
  }

  /** Somebody has a place elsewhere, or has left. */
  drop(waiter: Covered): void {
    this.#waiters.delete(waiter);
    waiter.cover = undefined;
  }

  /** Nobody counts on it any more. Returns those who did. */
  uncover(): Covered[] {
    const waiters = [...this.#waiters];
    for (const waiter of waiters) this.drop(waiter);
    return waiters;
  }
}
