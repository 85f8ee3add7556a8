/** How much the latest request counts in the mean. */
const WEIGHT = 0.1;
/** Seconds. Nobody is told to come back sooner or later than this. */
const LEAST_WAIT = 1;
const MOST_WAIT = 60;

/** How long requests hold their place of late. */
export class ServiceTime {
  #meanMs: number | undefined;

  record(ms: number): void {
    this.#meanMs = this.#meanMs === undefined ? ms : this.#meanMs + WEIGHT * (ms - this.#meanMs);
  }

  /**
   * Seconds until those who wait now may have been served, by what requests took of late: from 1,
   * also when none has ended yet, to 60.
   *
   * @param waiting - requests that wait
   * @param places - requests that can be served at once
   */
  retryAfterSeconds(waiting: number, places: number): number {
    const seconds = Math.ceil(((waiting / places) * (this.#meanMs ?? 0)) / 1000);
    return Math.min(MOST_WAIT, Math.max(LEAST_WAIT, seconds));
  }
}
