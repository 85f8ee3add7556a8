/** Wakes up a loop: what comes while it is busy is not lost. */
export class Wake {
  #pending = false;
  #waiting: (() => void) | undefined;

  notify(): void {
    this.#pending = true;
    this.#waiting?.();
  }

  /** Waits for a call of `notify` since the last wait. */
  async wait(): Promise<void> {
    if (!this.#pending) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#waiting = resolve;
      await promise;
      this.#waiting = undefined;
    }
    this.#pending = false;
  }
}
