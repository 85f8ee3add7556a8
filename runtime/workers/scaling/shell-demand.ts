import { requireCount, requirePositive } from "./isolation.ts";

export interface ShellDemandOptions {
  /** Milliseconds that a shell takes to start. @default 100 */
  startMs?: number | undefined;
  /** Milliseconds after which a peak of the past counts half. @default 30000 */
  halfLifeMs?: number | undefined;
  /** Shells that are always kept. @default 0 */
  min?: number | undefined;
  /** Shells that are kept at most. @default 8 */
  max?: number | undefined;
}

/**
 * How many shells to keep ahead of need. While one shell starts, as many may be taken as forks come
 * in that time (Little's law); so what is kept is the largest number of forks that there was in any
 * window of `startMs`, where a peak of the past counts half after each `halfLifeMs`: rounded, and
 * within `min` and `max`.
 *
 * A burst therefore finds the shells that one like it has used up before, and a peak of n forks is
 * forgotten `halfLifeMs * log2(2n)` after the last one.
 */
export class ShellDemand {
  readonly #startMs: number;
  readonly #halfLifeMs: number;
  readonly #min: number;
  readonly #max: number;
  /** Times of the forks of the last `startMs`; no more of them than `max` matter. */
  readonly #forks: number[] = [];
  #peak = 0;
  #peakAt = 0;

  /** @throws FlurryError BAD_ARGUMENT */
  constructor({ startMs = 100, halfLifeMs = 30_000, min = 0, max = 8 }: ShellDemandOptions = {}) {
    requirePositive("shells.startMs", startMs);
    requirePositive("shells.halfLifeMs", halfLifeMs);
    requireCount("shells.min", min, 0);
    requireCount("shells.max", max, min);
    this.#startMs = startMs;
    this.#halfLifeMs = halfLifeMs;
    this.#min = min;
    this.#max = max;
  }

  /** Counts a fork that begins. */
  forked(now: number): void {
    this.#forks.push(now);
    while (this.#forks.length > this.#max || this.#forks[0]! <= now - this.#startMs) this.#forks.shift();
    this.#peak = Math.max(this.#forks.length, this.#peakNow(now));
    this.#peakAt = now;
  }

  /** Shells to keep. */
  wanted(now: number): number {
    return Math.min(this.#max, Math.max(this.#min, Math.round(this.#peakNow(now))));
  }

  /** When fewer shells will do if nothing is forked; undefined if never. */
  fallsAt(now: number): number | undefined {
    const wanted = this.wanted(now);
    if (wanted <= this.#min) return undefined;
    return this.#peakAt + this.#halfLifeMs * Math.log2(this.#peak / (wanted - 0.5));
  }

  #peakNow(now: number): number {
    return this.#peak * 2 ** ((this.#peakAt - now) / this.#halfLifeMs);
  }
}
