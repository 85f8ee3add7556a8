/** What tells the time; tests have their own. */
export interface Clock {
  /** Wall-clock time in ms since 1970. It may jump: for people, never for a decision. */
  now(): number;
  /** Milliseconds since some moment of this process. Never jumps. */
  monotonic(): number;
}

export const systemClock: Clock = { now: () => Date.now(), monotonic: () => performance.now() };
