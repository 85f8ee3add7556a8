import { type RetireReason, retireReasons } from "./serving-child.ts";

/** Upper ends of the classes of waiting times, in ms; what waited longer counts only in `count`. */
const WAIT_CLASSES = [1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000] as const;

/** How long requests waited for their child, as Prometheus has histograms: each class includes the smaller ones. */
export interface WaitHistogram {
  count: number;
  sumMs: number;
  classes: { upToMs: number; count: number }[];
}

/** Children by what they are doing. */
export interface ChildCounts {
  /** Waiting for room on the host. */
  admitting: number;
  forking: number;
  /** Ready, and never used. */
  spare: number;
  /** Without a request. */
  idle: number;
  /** With requests, and open for more if it has places. */
  busy: number;
  /** With requests that it finishes, and closed for more. */
  draining: number;
  /** Being disposed. */
  ending: number;
}

/** What a router is doing now, and what it has done since it began. */
export interface RouterStats {
  /** Requests that are in children, also those whose caller has left while the work on them goes on. */
  inFlight: number;
  /** Requests that wait for a child. */
  queued: number;
  children: ChildCounts;
  /** Forks that were begun, those of them that failed, and those that began ahead of need. */
  forks: number;
  failedForks: number;
  forksAhead: number;
  /** Children forked ahead that requests have taken. */
  usedAhead: number;
  /** Children that have ended without ever having had a request. */
  unused: number;
  /** Children that were retired, by why. */
  retired: Record<RetireReason, number>;
  /** Requests that were answered. */
  answered: number;
  /** Requests turned away because too many waited, and those that gave up after `queueMs`. */
  refused: number;
  expired: number;
  /** Requests given to another child because the first one died before anything of them was sent. */
  rerouted: number;
  waits: WaitHistogram;
}

/** What is counted from the beginning. */
export type Counters = Omit<RouterStats, "inFlight" | "queued" | "children">;

export function newCounters(): Counters {
  return {
    forks: 0,
    failedForks: 0,
    forksAhead: 0,
    usedAhead: 0,
    unused: 0,
    retired: Object.fromEntries(retireReasons.map((reason) => [reason, 0])) as Record<RetireReason, number>,
    answered: 0,
    refused: 0,
    expired: 0,
    rerouted: 0,
    waits: { count: 0, sumMs: 0, classes: WAIT_CLASSES.map((upToMs) => ({ upToMs, count: 0 })) },
  };
}

export function countWait(waits: WaitHistogram, ms: number): void {
  waits.count += 1;
  waits.sumMs += ms;
  for (const one of waits.classes) if (ms <= one.upToMs) one.count += 1;
}
