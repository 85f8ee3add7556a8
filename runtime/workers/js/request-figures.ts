import type { RouterStats } from "../scaling/router-stats.ts";

/** How a request to a worker may end. */
export const requestOutcomes = [
  /** Its answer has begun. */
  "answered",
  /** Too many waited for a child already. */
  "queue-full",
  /** No child was free in time. */
  "queue-timeout",
  "child-died",
  /** It was not answered in time. */
  "timeout",
  /** Whoever asked has left. */
  "canceled",
  "failed",
] as const;
export type RequestOutcome = (typeof requestOutcomes)[number];

/** What services do now, and have done: of one, or of all together. */
export interface RequestFigures {
  children: { starting: number; spare: number; idle: number; busy: number; ending: number };
  waiting: number;
  forks: number;
  failedForks: number;
  /** Children forked ahead that requests have taken, and children that have ended without a request. */
  usedAhead: number;
  unused: number;
  outcomes: Record<RequestOutcome, number>;
  /** How long requests waited for their child; `upTo` has how many of them no longer than so many ms. */
  waits: { count: number; sumMs: number; upTo: Record<number, number> };
}

export function figuresOf(stats: RouterStats, outcomes: Record<RequestOutcome, number>): RequestFigures {
  const { admitting, forking, spare, idle, busy, draining, ending } = stats.children;
  return {
    children: { starting: admitting + forking, spare, idle, busy: busy + draining, ending },
    waiting: stats.queued,
    forks: stats.forks,
    failedForks: stats.failedForks,
    usedAhead: stats.usedAhead,
    unused: stats.unused,
    outcomes: { ...outcomes, "queue-full": stats.refused, "queue-timeout": stats.expired },
    waits: {
      count: stats.waits.count,
      sumMs: stats.waits.sumMs,
      upTo: Object.fromEntries(stats.waits.classes.map(({ upToMs, count }) => [upToMs, count])),
    },
  };
}

export function noOutcomes(): Record<RequestOutcome, number> {
  return Object.fromEntries(requestOutcomes.map((outcome) => [outcome, 0])) as Record<RequestOutcome, number>;
}

export function noFigures(): RequestFigures {
  return {
    children: { starting: 0, spare: 0, idle: 0, busy: 0, ending: 0 },
    ...{ waiting: 0, forks: 0, failedForks: 0, usedAhead: 0, unused: 0 },
    outcomes: noOutcomes(),
    waits: { count: 0, sumMs: 0, upTo: {} },
  };
}

export function sumOfFigures(all: readonly RequestFigures[]): RequestFigures {
  return all.reduce(
    (a, b) => ({
      children: sum(a.children, b.children),
      waiting: a.waiting + b.waiting,
      forks: a.forks + b.forks,
      failedForks: a.failedForks + b.failedForks,
      usedAhead: a.usedAhead + b.usedAhead,
      unused: a.unused + b.unused,
      outcomes: sum(a.outcomes, b.outcomes),
      waits: {
        count: a.waits.count + b.waits.count,
        sumMs: a.waits.sumMs + b.waits.sumMs,
        upTo: sum(a.waits.upTo, b.waits.upTo),
      },
    }),
    noFigures(),
  );
}

function sum<K extends string | number>(a: Record<K, number>, b: Record<K, number>): Record<K, number> {
  const keys = Object.keys({ ...a, ...b }) as K[];
  return Object.fromEntries(keys.map((key) => [key, (a[key] ?? 0) + (b[key] ?? 0)])) as Record<K, number>;
}
