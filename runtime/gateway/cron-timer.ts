import { nextCronTime } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { After } from "../jobs/timer.ts";

/** Longest wait until the clock is looked at again: somebody may have set it. */
const LOOK_MS = 30_000;
/** A time that is so long ago is not made up for. */
const LATE_MS = 60_000;
/** A clock that is set back by no more than this brings no time a second time; by more, it was wrong before. */
const BACK_MS = 3_600_000;

export interface CronTimerOptions {
  clock: Clock;
  after: After;
  /** The time has come for a cron of a worker, in ms since 1970. It must not throw. */
  onDue: (worker: string, cron: string, time: number) => void;
  /** It had come while nobody looked, and more than a minute ago. It must not throw. */
  onMissed: (worker: string, cron: string, time: number) => void;
}

/**
 * Tells when the times of workers' crons have come: each once, never early, and within a minute. It goes
 * by the wall clock, as who reads a cron does, and by no more than one timer.
 */
export class CronTimer implements Disposable {
  readonly #options: CronTimerOptions;
  /** Of each worker, its crons with the time that comes next. */
  readonly #workers = new Map<string, Map<string, number>>();
  #timer: Disposable | undefined;
  #ended = false;
  /** Wall clock less the one that never jumps, when they were last looked at. */
  #offset: number;

  constructor(options: CronTimerOptions) {
    this.#options = options;
    this.#offset = this.#offsetNow();
  }

  /** Sets what a worker has now. Those that it had before go on. */
  set(worker: string, crons: readonly string[]): void {
    if (this.#ended) return;
    const before = this.#workers.get(worker);
    const now = this.#options.clock.now();
    const times = crons.map((cron) => [cron, before?.get(cron) ?? nextCronTime(cron, now)] as const);
    if (crons.length === 0) this.#workers.delete(worker);
    else this.#workers.set(worker, new Map(times));
    this.#wait();
  }

  [Symbol.dispose](): void {
    this.#ended = true;
    this.#timer?.[Symbol.dispose]();
  }

  #look(): void {
    const now = this.#options.clock.now();
    const offset = this.#offsetNow();
    const isSetBack = this.#offset - offset > BACK_MS;
    this.#offset = offset;
    for (const [worker, crons] of this.#workers) {
      for (const [cron, time] of crons) {
        if (time > now && !isSetBack) continue;
        crons.set(cron, nextCronTime(cron, now));
        if (time <= now) this.#tell(worker, cron, time, now);
      }
    }
    this.#wait();
  }

  #tell(worker: string, cron: string, time: number, now: number): void {
    const { onDue, onMissed } = this.#options;
    const isMissed = now - time >= LATE_MS;
    if (isMissed) onMissed(worker, cron, time);
    // Of those that came after it, one may be recent.
    const recent = isMissed ? nextCronTime(cron, now - LATE_MS) : time;
    if (recent <= now) onDue(worker, cron, recent);
  }

  #wait(): void {
    this.#timer?.[Symbol.dispose]();
    this.#timer = undefined;
    const times = [...this.#workers.values()].flatMap((crons) => [...crons.values()]);
    if (this.#ended || times.length === 0) return;
    const first = times.reduce((least, time) => Math.min(least, time));
    const { clock, after } = this.#options;
    // It looks at the clock then: a timer that is early finds nothing due, and waits again.
    this.#timer = after(Math.min(Math.max(0, first - clock.now()), LOOK_MS), () => this.#look());
  }

  #offsetNow(): number {
    const { clock } = this.#options;
    return clock.now() - clock.monotonic();
  }
}
