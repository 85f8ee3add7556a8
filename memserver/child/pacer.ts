/** Bytes that may go out at once after a pause: what a rate means over some milliseconds. */
const BURST_MS = 10;

/** Holds what is sent to a rate, over any stretch longer than a few milliseconds. */
export class Pacer {
  readonly #bytesPerMs: number;
  readonly #now: () => number;
  /** When the bytes so far are due, in ms. */
  #due: number;

  /** @param bytesPerSecond - Infinity for no limit */
  constructor(bytesPerSecond: number, now: () => number = () => performance.now()) {
    this.#bytesPerMs = bytesPerSecond / 1000;
    this.#now = now;
    this.#due = now();
  }

  /** Counts bytes as sent. Returns the milliseconds to wait before the next ones, 0 for none. */
  sent(bytes: number): number {
    const now = this.#now();
    this.#due = Math.max(this.#due, now - BURST_MS) + bytes / this.#bytesPerMs;
    const ahead = this.#due - now;
    return ahead > BURST_MS ? ahead : 0;
  }
}
