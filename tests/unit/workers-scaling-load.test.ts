import { describe, expect, test } from "bun:test";
import { distributionOf } from "../../runtime/stats.ts";
import { MAX_AHEAD_MS } from "../../runtime/workers/scaling/ahead-rule.ts";
import type { Isolation } from "../../runtime/workers/scaling/isolation.ts";
import {
  forksBeyondNeed,
  type Load,
  type LoadResult,
  type LoadRun,
  loadTable,
  mostUnused,
  playLoad,
  ramp,
  spike,
} from "../support/workers-scaling-load.ts";

const CONCURRENCY = 10;
const SESSIONS = 20;
/** Longer than the gaps of any load, so that no child is forked twice for the same need. */
const IDLE_MS = 60_000;
const MAX_CHILDREN = 200;
const AHEAD = 4;

const modes: Isolation[] = [
  { mode: "request" },
  { mode: "shared", concurrency: CONCURRENCY, idleMs: IDLE_MS },
  { mode: "session", idleMs: IDLE_MS },
];
const loads: Record<string, Load> = {
  step: ramp(1000, 20_000, [50, 50]),
  spike: [...ramp(0, 30_000, [5, 5]), ...spike(10_000, 50), ...spike(20_000, 50)],
  sawtooth: [0, 15_000, 30_000, 45_000].flatMap((at) => ramp(at, 10_000, [0, 100])),
  "slow ramp": ramp(0, 60_000, [0, 100]),
};
const speeds = [
  { forkMs: 50, serviceMs: 50 },
  { forkMs: 220, serviceMs: 500 },
];

/** What holds of every load that does not need more children than there may be. */
function checkBounds(result: LoadResult): void {
  const { run, waits, stats, forkedAt, left } = result;
  const requests = run.load.length;
  expect(waits).toHaveLength(requests);
  expect(stats).toMatchObject({ answered: requests, refused: 0, expired: 0, inFlight: 0, queued: 0 });
  // A child is begun in the moment in which somebody needs it: nobody waits longer than for a fork.
  expect(result.mostChildren).toBeLessThan(MAX_CHILDREN);
  expect(distributionOf(waits).max).toBeLessThanOrEqual(run.forkMs);
  const needed = forkedAt.length - stats.unused;
  if (run.isolation.mode === "request") expect(needed).toBe(requests);
  else expect(distributionOf(waits).p50).toBe(0);
  if (run.isolation.mode === "session") expect(needed).toBeLessThanOrEqual(SESSIONS);
  if (run.isolation.mode === "shared" && run.ahead === 0) {
    expect(forksBeyondNeed(result, IDLE_MS, CONCURRENCY)).toBeLessThanOrEqual(0);
  }
  checkAhead(result);
  // Scaled to zero.
  expect(left).toEqual({ children: 0, tickets: 0, timers: 0 });
}

/** Children forked ahead: no more ready than there may be, and in no minute more that are of no use. */
function checkAhead(result: LoadResult): void {
  const { run, stats, mostAhead, unusedAt } = result;
  expect(mostAhead).toBeLessThanOrEqual(run.ahead);
  expect(mostUnused(result, MAX_AHEAD_MS)).toBeLessThanOrEqual(run.ahead);
  expect(stats.forksAhead).toBeLessThanOrEqual(stats.answered);
  expect(stats.forksAhead).toBe(stats.usedAhead + unusedAt.length);
}

function play(run: Partial<LoadRun> & Pick<LoadRun, "name" | "load" | "isolation">): Promise<LoadResult> {
  return playLoad({ ...speeds[0]!, maxChildren: MAX_CHILDREN, sessions: SESSIONS, ahead: 0, ...run });
}

describe("RequestRouter under load", () => {
  test("keeps its bounds on waits, forks and children of no use, and is as good as it was", async () => {
    const results: LoadResult[] = [];
    for (const speed of speeds) {
      for (const [name, load] of Object.entries(loads)) {
        for (const isolation of modes) {
          for (const ahead of [0, AHEAD])
            results.push(await play({ name, load, isolation, ahead, ...speed }));
        }
      }
    }
    results.forEach(checkBounds);
    expect(`\n${loadTable(results)}\n`).toBe(expected);
  }, 60_000);

  test("serves a spike beyond its places in turn", async () => {
    const [forkMs, serviceMs, endMs] = [50, 50, 5];
    const load = spike(1000, 400);
    const result = await play({ name: "overload", load, isolation: { mode: "request" }, maxChildren: 20 });
    expect(result.waits).toHaveLength(400);
    expect(result.mostChildren).toBe(20);
    const turns = 400 / 20;
    const longest = turns * (forkMs + 1.5 * serviceMs + endMs);
    expect(distributionOf(result.waits).max).toBeLessThanOrEqual(longest);
    expect(result.stats.forks).toBe(400);
  });

  test("forks in no time of idleMs more children than demand needed in it, however demand swings", async () => {
    const idleMs = 2000;
    const isolation: Isolation = { mode: "shared", concurrency: 2, idleMs };
    const forks: number[] = [];
    for (const gapMs of [500, 1900, 2100, 8000]) {
      const load = Array.from({ length: 20 }, (_, n) => spike(1000 + n * (gapMs + 100), 20)).flat();
      const result = await play({ name: `gaps of ${gapMs} ms`, load, isolation });
      expect(forksBeyondNeed(result, idleMs, 2)).toBeLessThanOrEqual(0);
      forks.push(result.forkedAt.length);
    }
    // Once for all where the gaps are shorter than idleMs, else once for each spike, and never more.
    expect(forks).toEqual([10, 10, 200, 200]);
  });

  test("has children ready for the next spike like the last one, unless it comes too late", async () => {
    const isolation: Isolation = { mode: "request" };
    const results: LoadResult[] = [];
    for (const gapMs of [100, 1000, 30_000, 59_000, 62_000, 300_000]) {
      const load = [...spike(1000, 16), ...spike(1000 + gapMs, 16)];
      results.push(await play({ name: `gap of ${gapMs} ms`, load, isolation, ahead: 16 }));
    }
    // As many at a time as there are cores, and after a minute not any more.
    expect(results.map(({ stats }) => stats.usedAhead)).toEqual([8, 16, 16, 16, 0, 0]);
    for (const result of results) checkAhead(result);
  });

  test("forks ahead no more for one who comes once in a while than for each of its requests one", async () => {
    const rates = [500, 20_000, 59_000, 61_000, 600_000];
    const forks: number[] = [];
    for (const everyMs of rates) {
      const load = Array.from({ length: 20 }, (_, n) => 1000 + n * everyMs);
      const isolation: Isolation = { mode: "request" };
      const result = await play({ name: `every ${everyMs} ms`, load, isolation, ahead: AHEAD });
      checkAhead(result);
      forks.push(result.stats.forks);
    }
    // A minute later the one that was forked ahead is gone, and the next one is forked for the request.
    expect(forks).toEqual([21, 21, 21, 40, 40]);
  });
});

/** Times in ms. */
const expected = `
load       mode     ahead  fork  service  requests  p50  p99  max  forks  found  unused  children  ready
step       request      0    50       50      1000   50   50   50   1000      0       0         7      0
step       request      4    50       50      1000    0   14   50   1004    993       4         9      4
step       shared       0    50       50      1000    0    0   50      1      0       0         1      0
step       shared       4    50       50      1000    0    0   50      2      0       1         2      1
step       session      0    50       50      1000    0   50   50     20      0       0        20      0
step       session      4    50       50      1000    0    0   50     24     13       4        24      4
spike      request      0    50       50       250   50   50   50    250      0       0        51      0
spike      request      4    50       50       250    0   50   50    254    152       4        54      4
spike      shared       0    50       50       250    0   50   50      6      0       0         6      0
spike      shared       4    50       50       250    0   50   50      9      0       3         9      3
spike      session      0    50       50       250    0   50   50     20      0       0        20      0
spike      session      4    50       50       250    0    0   50     21     19       1        21      1
sawtooth   request      0    50       50      1996   50   50   50   1996      0       0        12      0
sawtooth   request      4    50       50      1996   10   50   50   2000   1971       4        15      4
sawtooth   shared       0    50       50      1996    0    0   50      1      0       0         1      0
sawtooth   shared       4    50       50      1996    0    0   50      2      0       1         2      1
sawtooth   session      0    50       50      1996    0   50   50     20      0       0        20      0
sawtooth   session      4    50       50      1996    0    0   50     22     18       2        22      2
slow ramp  request      0    50       50      2999   50   50   50   2999      0       0        13      0
slow ramp  request      4    50       50      2999    8   44   50   3003   2989       4        13      4
slow ramp  shared       0    50       50      2999    0    0   50      1      0       0         1      0
slow ramp  shared       4    50       50      2999    0    0   50      2      0       1         2      1
slow ramp  session      0    50       50      2999    0    0   50     20      0       0        20      0
slow ramp  session      4    50       50      2999    0    0   50     21     19       1        21      1
step       request      0   220      500      1000  220  220  220   1000      0       0        42      0
step       request      4   220      500      1000  220  220  220   1004      0       4        42      4
step       shared       0   220      500      1000    0  149  220      4      0       0         4      0
step       shared       4   220      500      1000    0  149  220      7      1       3         7      3
step       session      0   220      500      1000    0  220  220     20      0       0        20      0
step       session      4   220      500      1000    0  220  220     24      3       4        24      4
spike      request      0   220      500       250  220  220  220    250      0       0        55      0
spike      request      4   220      500       250    0  220  220    254    148       4        58      4
spike      shared       0   220      500       250    0  220  220      6      0       0         6      0
spike      shared       4   220      500       250    0  220  220     10      1       4        10      4
spike      session      0   220      500       250    0  220  220     20      0       0        20      0
spike      session      4   220      500       250    0  220  220     23     15       3        23      4
sawtooth   request      0   220      500      1996  220  220  220   1996      0       0        74      0
sawtooth   request      4   220      500      1996  220  220  220   2000    222       4        74      4
sawtooth   shared       0   220      500      1996    0   26  220      6      0       0         6      0
sawtooth   shared       4   220      500      1996    0    0  220      7      5       1         7      1
sawtooth   session      0   220      500      1996    0  220  220     20      0       0        20      0
sawtooth   session      4   220      500      1996    0    0  220     24     11       4        24      4
slow ramp  request      0   220      500      2999  220  220  220   2999      0       0        77      0
slow ramp  request      4   220      500      2999  220  220  220   3003    391       4        77      4
slow ramp  shared       0   220      500      2999    0    0  220      6      0       0         6      0
slow ramp  shared       4   220      500      2999    0    0  220      7      5       1         7      1
slow ramp  session      0   220      500      2999    0    0  220     20      0       0        20      0
slow ramp  session      4   220      500      2999    0    0  220     24     16       4        24      4
`;
