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
  shellMs: number;
  /** Mean; each request takes from half to one and a half times as long. */
  serviceMs: number;
  maxChildren: number;
  /** Sessions among which requests are divided, in session mode. */
  sessions: number;
  /** Shells that are kept at most. */
  shells: number;
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
  mostShells: number;
  warmForks: number;
  /** What is left when nothing has been asked for some time. */
  left: { children: number; shells: number; tickets: number; timers: number };
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
  const { isolation, serviceMs, maxChildren, sessions } = run;
  const time = new SimulatedTime();
  const host = new SimulatedHost(time, { ...run, places: maxChildren });
  const dice = new Dice(7);
  const shells = { startMs: run.shellMs, max: run.shells };
  const router = new RequestRouter({
    ...{ ports: host, isolation, maxChildren, shells, clock: time, after: time.after },
  });
  const waits: number[] = [];
  const demand: LoadResult["demand"] = [];
  time.onMoment = () => {
    const { inFlight, queued } = router.stats();
    demand.push({ at: time.now(), requests: inFlight + queued });
  };
  const answers: Promise<void>[] = [];
  for (const at of [...run.load].sort((a, b) => a - b)) {
    await time.advance(at - time.now());
    const ms = Math.round(serviceMs * (0.5 + dice.next()));
    const session = `s${dice.int(1, sessions)}`;
    const answer = router.serve(
      async () => {
        waits.push(time.now() - at);
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
  const left = {
    children: host.live.length,
    shells: host.shells,
    tickets: host.tickets,
    timers: time.timers,
  };
  const { mostChildren, mostShells, forkedAt, warm } = host;
  const stats = router.stats();
  await Promise.all([router[Symbol.asyncDispose](), turn()]);
  return { run, stats, waits, forkedAt, demand, mostChildren, mostShells, warmForks: warm, left };
}

/** The results as text, one line a load; times in ms. */
export function loadTable(results: readonly LoadResult[]): string {
  const head = ["load", "mode", "fork", "shell", "service", "requests", "p50", "p99", "max", "forks", "warm"];
  const rows = results.map(({ run, waits, forkedAt, warmForks, mostChildren, mostShells }) => {
    const { p50, p99, max } = distributionOf(waits);
    const warm = `${Math.round((100 * warmForks) / forkedAt.length)} %`;
    return [
      ...[run.name, run.isolation.mode, run.forkMs, run.shellMs, run.serviceMs, waits.length, p50, p99, max],
      ...[forkedAt.length, warm, mostChildren, mostShells],
    ].map(String);
  });
  const lines = [[...head, "children", "shells"], ...rows];
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
