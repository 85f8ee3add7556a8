import type { Clock } from "../clock.ts";

/** How long the past counts, in ms. */
const SPAN_MS = 60_000;

/** How often something happens in a second; what is longer ago counts less. */
export class Rate {
  readonly #clock: Clock;
  readonly #beganAt: number;
  #weight = 0;
  #at: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#beganAt = clock.monotonic();
    this.#at = this.#beganAt;
  }

  count(): void {
    this.#fade();
    this.#weight += 1;
  }

  get perSecond(): number {
    this.#fade();
    // In the beginning there is not so much past yet.
    const span = SPAN_MS * (1 - Math.exp((this.#beganAt - this.#at) / SPAN_MS));
    return span <= 0 ? 0 : (this.#weight * 1000) / Math.max(span, 1000);
  }

  #fade(): void {
    const now = this.#clock.monotonic();
    this.#weight *= Math.exp((this.#at - now) / SPAN_MS);
    this.#at = now;
  }
}
