import { distributionOf } from "../../runtime/stats.ts";
import type { Isolation } from "../../runtime/workers/scaling/isolation.ts";
import { RequestRouter } from "../../runtime/workers/scaling/request-router.ts";
import type { RouterStats } from "../../runtime/workers/scaling/router-stats.ts";
import { Dice } from "./dice.ts";
import { SimulatedHost } from "./workers-scaling-host.ts";
import { SimulatedTime, turn } from "./workers-scaling-time.ts";

/** Time, in ms, of each request. */
export type Load = readonly number[];

export interface LoadRun {
  name: string;
  load: Load;
  isolation: Isolation;
  forkMs: number;
  /** Mean; each request takes from half to one and a half times as long. */
  serviceMs: number;
  maxChildren: number;
  /** Sessions among which requests are divided, in session mode. */
  sessions: number;
  /** Children that are forked ahead of need at most. */
  ahead: number;
}

export interface LoadResult {
  run: LoadRun;
  stats: RouterStats;
  /** Of each request, the time from its arrival until it was in a child. */
  waits: number[];
  forkedAt: readonly number[];
  /** Requests in children and waiting, after each moment in which that may have changed. */
  demand: { at: number; requests: number }[];
  mostChildren: number;
  /** The most children at once that were ready ahead of need. */
  mostAhead: number;
  /** When each child that was forked ahead ended without ever having had a request. */
  unusedAt: number[];
  /** What is left when nothing has been asked for some time. */
  left: { children: number; tickets: number; timers: number };
}

/** Requests at a rate that changes in a straight line from one value to another. */
export function ramp(fromMs: number, forMs: number, perSecond: [number, number]): Load {
  const [first, last] = perSecond;
  const load: number[] = [];
  let due = 0;
  for (let ms = 0; ms < forMs; ms++) {
    due += (first + ((last - first) * ms) / forMs) / 1000;
    for (; due >= 1; due--) load.push(fromMs + ms);
  }
  return load;
}

/** Requests that all come in the same moment. */
export function spike(atMs: number, count: number): Load {
  return Array.from({ length: count }, () => atMs);
}

/** Plays a load; then waits until all that was kept for more of it has been given up. */
export async function playLoad(run: LoadRun): Promise<LoadResult> {
  const { isolation, serviceMs, maxChildren, sessions, ahead } = run;
  const time = new SimulatedTime();
  const host = new SimulatedHost(time, { ...run, places: maxChildren });
  const dice = new Dice(7);
  const router = new RequestRouter({
    ...{ ports: host, isolation, maxChildren, ahead, clock: time, after: time.after },
  });
  const waits: number[] = [];
  const demand: LoadResult["demand"] = [];
  const unusedAt: number[] = [];
  let mostAhead = 0;
  time.onMoment = () => {
    const { inFlight, queued } = router.stats();
    demand.push({ at: time.now(), requests: inFlight + queued });
    for (const child of host.ahead) {
      if (child.gone && host.ahead.delete(child)) unusedAt.push(time.now());
    }
    mostAhead = Math.max(mostAhead, host.ahead.size);
  };
  const answers: Promise<void>[] = [];
  for (const at of [...run.load].sort((a, b) => a - b)) {
    await time.advance(at - time.now());
    const ms = Math.round(serviceMs * (0.5 + dice.next()));
    const session = `s${dice.int(1, sessions)}`;
    const answer = router.serve(
      async (child) => {
        waits.push(time.now() - at);
        host.ahead.delete(child);
        await time.sleep(ms);
      },
      { session },
    );
    answers.push(answer);
    time.onMoment();
  }
  await time.advance(10 * serviceMs + 60_000);
  await Promise.all(answers);
  await time.advance(600_000);
  const left = { children: host.live.length, tickets: host.tickets, timers: time.timers };
  const { mostChildren, forkedAt } = host;
  const stats = router.stats();
  await Promise.all([router[Symbol.asyncDispose](), turn()]);
  return { run, stats, waits, forkedAt, demand, mostChildren, mostAhead, unusedAt, left };
}

/** The results as text, one line a load; times in ms. */
export function loadTable(results: readonly LoadResult[]): string {
  const head = ["load", "mode", "ahead", "fork", "service", "requests", "p50", "p99", "max", "forks"];
  const rows = results.map(({ run, stats, waits, mostChildren, mostAhead }) => {
    const { p50, p99, max } = distributionOf(waits);
    return [
      ...[run.name, run.isolation.mode, run.ahead, run.forkMs, run.serviceMs, waits.length, p50, p99, max],
      ...[stats.forks, stats.usedAhead, stats.unused, mostChildren, mostAhead],
    ].map(String);
  });
  const lines = [[...head, "found", "unused", "children", "ready"], ...rows];
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines.map((line) => textLine(line, widths)).join("\n");
}

function textLine(cells: readonly string[], widths: readonly number[]): string {
  const padded = cells.map((cell, at) => (at < 2 ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!)));
  return padded.join("  ").trimEnd();
}

/**
 * How many forks there were beyond the bound in the worst `windowMs`: more than the children that
 * demand needed at its peak in that time.
 */
export function forksBeyondNeed(
  { forkedAt, demand }: LoadResult,
  windowMs: number,
  concurrency: number,
): number {
  let worst = Number.NEGATIVE_INFINITY;
  let firstFork = 0;
  let firstDemand = 0;
  forkedAt.forEach((at, n) => {
    while (forkedAt[firstFork]! <= at - windowMs) firstFork += 1;
    while (demand[firstDemand]!.at <= at - windowMs) firstDemand += 1;
    let peak = 0;
    for (let m = firstDemand; m < demand.length && demand[m]!.at <= at; m++) {
      peak = Math.max(peak, demand[m]!.requests);
    }
    worst = Math.max(worst, n - firstFork + 1 - Math.ceil(peak / concurrency));
  });
  return worst;
}

/** The most children that were forked ahead and ended unused in any `windowMs`. */
export function mostUnused({ unusedAt }: LoadResult, windowMs: number): number {
  let first = 0;
  let most = 0;
  unusedAt.forEach((at, n) => {
    while (unusedAt[first]! <= at - windowMs) first += 1;
    most = Math.max(most, n - first + 1);
  });
  return most;
}
