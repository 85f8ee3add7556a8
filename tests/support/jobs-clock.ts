import type { Clock } from "../../runtime/clock.ts";
import type { After } from "../../runtime/jobs/timer.ts";

interface Timer {
  at: number;
  callback: () => void;
}

/** A clock that goes on only when it is told to, and timers that go by it. */
export class ManualClock implements Clock {
  readonly #timers = new Set<Timer>();
  #wall = Date.UTC(2026, 0, 31, 12);
  #monotonic = 1000;

  /** In whole milliseconds, as of the system. */
  now(): number {
    return Math.floor(this.#wall);
  }

  monotonic(): number {
    return this.#monotonic;
  }

  readonly after: After = (ms, callback) => {
    const timer = { at: this.#monotonic + Math.max(0, ms), callback };
    this.#timers.add(timer);
    return { [Symbol.dispose]: () => void this.#timers.delete(timer) };
  };

  /** Lets time go by, and each timer fire at its time. */
  advance(ms: number): void {
    const until = this.#monotonic + ms;
    for (let timer = this.#first(until); timer; timer = this.#first(until)) {
      this.#goTo(timer.at);
      this.#timers.delete(timer);
      timer.callback();
    }
    this.#goTo(until);
  }

  /** Sets the wall clock, as people and time servers do. */
  jump(ms: number): void {
    this.#wall += ms;
  }

  #goTo(monotonic: number): void {
    this.#wall += monotonic - this.#monotonic;
    this.#monotonic = monotonic;
  }

  #first(until: number): Timer | undefined {
    const due = [...this.#timers].filter(({ at }) => at <= until);
    return due.sort((a, b) => a.at - b.at)[0];
  }
}
