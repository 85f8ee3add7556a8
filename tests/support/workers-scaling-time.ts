import type { Clock } from "../../runtime/clock.ts";
import type { After } from "../../runtime/jobs/timer.ts";

interface Timer {
  at: number;
  callback: () => void;
}

/**
 * Time that passes only when it is told to, and in which all that follows from one moment happens
 * before the next one: for hours of load in seconds, and the same in each run.
 */
export class SimulatedTime implements Clock {
  /** The latest first; of those at the same time, the one that was set last. */
  readonly #timers: Timer[] = [];
  #now = 0;
  /** Called after each moment in which something may have happened. */
  onMoment: () => void = () => undefined;

  now(): number {
    return this.#now;
  }

  monotonic(): number {
    return this.#now;
  }

  /** Timers that are set. */
  get timers(): number {
    return this.#timers.length;
  }

  readonly after: After = (ms, callback) => {
    const timer = { at: this.#now + Math.max(0, ms), callback };
    let at = this.#timers.length;
    while (at > 0 && this.#timers[at - 1]!.at <= timer.at) at -= 1;
    this.#timers.splice(at, 0, timer);
    return { [Symbol.dispose]: () => this.#cancel(timer) };
  };

  /** Waits, or rejects with the reason of the signal when that fires. */
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const timer = this.after(ms, () => {
        signal?.removeEventListener("abort", onAbort);
        resolve();
      });
      const onAbort = () => {
        timer[Symbol.dispose]();
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  /** Lets time pass, and each timer fire at its time. */
  async advance(ms: number): Promise<void> {
    const until = this.#now + ms;
    await turn();
    this.onMoment();
    for (let next = this.#timers.at(-1); next && next.at <= until; next = this.#timers.at(-1)) {
      this.#now = next.at;
      this.#timers.pop();
      next.callback();
      await turn();
      this.onMoment();
    }
    this.#now = until;
  }

  #cancel(timer: Timer): void {
    const at = this.#timers.indexOf(timer);
    if (at >= 0) this.#timers.splice(at, 1);
  }
}

/** Lets everything happen that needs no time: nothing in a simulation waits for more than promises. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
