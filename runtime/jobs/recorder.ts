import { describeError } from "../../errors/errors.ts";
import type { Clock } from "../clock.ts";
import type { AttemptEnd, Queue } from "./ports.ts";
import type { After } from "./timer.ts";

/** Wait before a store that failed is asked again: doubles each time. */
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;
/** After so many tries an end that the store refuses, while it takes others, is given up. */
const MOST_TRIES = 20;

export interface RecorderOptions {
  queue: Queue;
  clock: Clock;
  after: After;
  /** The store takes nothing now; it is asked again after `waitMs`. */
  onTrouble: (code: string, message: string, waitMs: number) => void;
  /** It does again. */
  onRelief: () => void;
}

/** Records how attempts end. A store that fails, as on a full disk, is asked again until it takes them. */
export class Recorder {
  readonly #options: RecorderOptions;
  /** Ends that the store has not taken yet: each wakes up when another one gets through. */
  readonly #held = new Map<string, () => void>();
  #workedAt = Number.NEGATIVE_INFINITY;

  constructor(options: RecorderOptions) {
    this.#options = options;
  }

  /** Whether there are ends that the store has not taken: no more should be begun then. */
  get troubled(): boolean {
    return this.#held.size > 0;
  }

  /** The store has taken something else. */
  worked(): void {
    this.#workedAt = this.#options.clock.monotonic();
  }

  /**
   * Records an end once.
   *
   * @param first - what has to be stored before
   * @param instead - what is recorded in place of an end that the store refuses for good: that counts as the
   * infrastructure's failure
   * @param giveUp - aborted when nobody can wait any longer: the lease is lost, or the process ends
   */
  async finish(
    token: string,
    end: AttemptEnd,
    options: { first: () => Promise<void>; instead: (error: unknown) => AttemptEnd; giveUp: AbortSignal },
  ): Promise<"recorded" | "replaced" | "stale" | "given up"> {
    const { first, instead, giveUp } = options;
    const { queue, clock, onRelief } = this.#options;
    const began = clock.monotonic();
    let recorded = end;
    for (let tries = 1; ; tries++) {
      try {
        // What the store refuses for good must not hold the task for good.
        if (recorded === end) await first();
        const result = await queue.finish(token, recorded);
        this.worked();
        if (this.#release(token)) onRelief();
        return result === "recorded" && recorded !== end ? "replaced" : result;
      } catch (error) {
        const failure = describeError(error);
        if (giveUp.aborted) {
          this.#release(token);
          return "given up";
        }
        if (tries >= MOST_TRIES && failure.code !== "NO_SPACE" && this.#workedAt > began) {
          recorded = instead(error);
        }
        await this.#hold(token, failure, tries, giveUp);
      }
    }
  }

  async #hold(
    token: string,
    failure: { code: string; message: string },
    tries: number,
    giveUp: AbortSignal,
  ): Promise<void> {
    const ms = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (tries - 1));
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#held.set(token, resolve);
    this.#options.onTrouble(failure.code, failure.message, ms);
    const onAbort = () => resolve();
    giveUp.addEventListener("abort", onAbort, { once: true });
    using _timer = this.#options.after(ms, resolve);
    try {
      await promise;
    } finally {
      giveUp.removeEventListener("abort", onAbort);
    }
  }

  #release(token: string): boolean {
    if (!this.#held.delete(token)) return false;
    for (const again of this.#held.values()) again();
    return this.#held.size === 0;
  }
}
