import { requireCount } from "./isolation.ts";

/** What counts as at the same time. */
const TOGETHER_MS = 1000;
/** Milliseconds after which a busy second of the past counts half. */
const HALF_LIFE_MS = 30_000;
/** How long after an answer children are forked for it. */
const RECENT_MS = 10_000;
/** Age at which a child that nobody has used is ended: it was given its variables and secrets when it was forked. */
export const MAX_AHEAD_MS = 60_000;

/**
 * How many children to have ready ahead of need: as many as requests took within the busiest second of
 * late, where a second of the past counts half after each 30 s; rounded, and `max` at most. Each child that
 * has answered lets one be forked ahead, within 10 s; and one that nobody has used is ended after a minute.
 *
 * There are therefore never more forks ahead than children that have answered, in no minute more than `max`
 * that were of no use, and none is left 70 s after the last answer.
 */
export class AheadRule {
  #max: number;
  /** Times at which children were taken, within the last second; no more of them than `max` matter. */
  readonly #taken: number[] = [];
  #peak = 0;
  #peakAt = 0;
  /** Children that may be forked for those that have answered. */
  #earned = 0;
  #answeredAt = 0;

  /** @throws FlurryError BAD_ARGUMENT */
  constructor(max: number) {
    requireCount("ahead", max, 0);
    this.#max = max;
  }

  /** Counts a child that a request has taken, whether it was ready or not. */
  taken(now: number): void {
    this.#taken.push(now);
    while (this.#taken.length > this.#max || this.#taken[0]! <= now - TOGETHER_MS) this.#taken.shift();
    this.#peak = Math.max(this.#taken.length, this.#peakNow(now));
    this.#peakAt = now;
  }

  /** Counts a child that has answered its first request. */
  answered(now: number): void {
    this.#answeredAt = now;
    this.#earned = Math.min(this.#max, this.#earned + 1);
  }

  /** Whether one more is to be forked where so many are ready. */
  wantsMore(ready: number, now: number): boolean {
    if (now - this.#answeredAt > RECENT_MS) this.#earned = 0;
    return this.#earned > 0 && ready < this.wanted(now);
  }

  /** Counts a fork ahead that begins. */
  forked(): void {
    this.#earned -= 1;
  }

  /** Children to have ready. */
  wanted(now: number): number {
    return Math.min(this.#max, Math.round(this.#peakNow(now)));
  }

  /** Wants none from now on. */
  stop(): void {
    this.#max = 0;
  }

  #peakNow(now: number): number {
    return this.#peak * 2 ** ((this.#peakAt - now) / HALF_LIFE_MS);
  }
}
