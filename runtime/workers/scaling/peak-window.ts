/** The largest value that something had within the last `spanMs` milliseconds. */
export class PeakWindow {
  readonly #spanMs: number;
  /** Values that were given up for smaller ones, and when; each is larger than those after it. */
  readonly #past: { value: number; until: number }[] = [];
  #current = 0;

  constructor(spanMs: number) {
    this.#spanMs = spanMs;
  }

  set(value: number, now: number): void {
    const before = this.#current;
    this.#current = value;
    while ((this.#past.at(-1)?.value ?? Number.POSITIVE_INFINITY) <= Math.max(before, value))
      this.#past.pop();
    if (value < before) this.#past.push({ value: before, until: now });
    this.#forget(now);
  }

  peak(now: number): number {
    this.#forget(now);
    return Math.max(this.#current, this.#past[0]?.value ?? 0);
  }

  /** When the peak falls if nothing changes; undefined if it does not. */
  get fallsAt(): number | undefined {
    const first = this.#past[0];
    return first && first.until + this.#spanMs;
  }

  #forget(now: number): void {
    while (this.#past[0] && this.#past[0].until + this.#spanMs <= now) this.#past.shift();
  }
}
