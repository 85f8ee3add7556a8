import { describe, expect, test } from "bun:test";
import { distributionOf } from "../../runtime/stats.ts";
import type { Isolation } from "../../runtime/workers/scaling/isolation.ts";
import {
  forksBeyondNeed,
  type Load,
  type LoadResult,
  type LoadRun,
  loadTable,
  playLoad,
  ramp,
  spike,
} from "../support/workers-scaling-load.ts";

const CONCURRENCY = 10;
const SESSIONS = 20;
/** Longer than the gaps of any load, so that no child is forked twice for the same need. */
const IDLE_MS = 60_000;
const MAX_CHILDREN = 200;
const SHELLS = 32;

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
  { forkMs: 20, shellMs: 60, serviceMs: 50 },
  { forkMs: 100, shellMs: 400, serviceMs: 500 },
];

/** What holds of every load that does not need more children than there may be. */
function checkBounds(result: LoadResult): void {
  const { run, waits, stats, forkedAt, left } = result;
  expect(waits).toHaveLength(run.load.length);
  expect(stats).toMatchObject({ answered: run.load.length, refused: 0, expired: 0, inFlight: 0, queued: 0 });
  // A child is begun in the moment in which somebody needs it: nobody waits longer than for a cold one.
  expect(result.mostChildren).toBeLessThan(MAX_CHILDREN);
  expect(distributionOf(waits).max).toBeLessThanOrEqual(run.shellMs + run.forkMs);
  if (run.isolation.mode === "request") expect(forkedAt).toHaveLength(run.load.length);
  else expect(distributionOf(waits).p50).toBe(0);
  if (run.isolation.mode === "session") expect(forkedAt.length).toBeLessThanOrEqual(SESSIONS);
  if (run.isolation.mode === "shared") {
    expect(forksBeyondNeed(result, IDLE_MS, CONCURRENCY)).toBeLessThanOrEqual(0);
  }
  expect(result.mostShells).toBeLessThanOrEqual(SHELLS);
  // Scaled to zero.
  expect(left).toEqual({ children: 0, shells: 0, tickets: 0, timers: 0 });
}

function play(run: Partial<LoadRun> & Pick<LoadRun, "name" | "load" | "isolation">): Promise<LoadResult> {
  return playLoad({ ...speeds[0]!, maxChildren: MAX_CHILDREN, sessions: SESSIONS, shells: SHELLS, ...run });
}

describe("RequestRouter under load", () => {
  test("keeps its bounds on waits, forks and shells, and is as good as it was", async () => {
    const results: LoadResult[] = [];
    for (const speed of speeds) {
      for (const [name, load] of Object.entries(loads)) {
        for (const isolation of modes) results.push(await play({ name, load, isolation, ...speed }));
      }
    }
    results.forEach(checkBounds);
    expect(`\n${loadTable(results)}\n`).toBe(expected);
  }, 60_000);

  test("serves a spike beyond its places in turn", async () => {
    const [forkMs, shellMs, serviceMs, endMs] = [20, 60, 50, 5];
    const load = spike(1000, 400);
    const result = await play({ name: "overload", load, isolation: { mode: "request" }, maxChildren: 20 });
    expect(result.waits).toHaveLength(400);
    expect(result.mostChildren).toBe(20);
    const turns = 400 / 20;
    const longest = turns * (shellMs + forkMs + 1.5 * serviceMs + endMs);
    expect(distributionOf(result.waits).max).toBeLessThanOrEqual(longest);
    // With shells kept for them, all but the first ones go on after what a fork itself takes.
    const typical = turns * (forkMs + serviceMs + endMs);
    expect(distributionOf(result.waits).max).toBeLessThanOrEqual(1.15 * typical);
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

  test("keeps shells for the next spike like the last one, and fewer the longer it does not come", async () => {
    const isolation: Isolation = { mode: "request" };
    const warm: number[] = [];
    for (const gapMs of [1000, 30_000, 60_000, 300_000]) {
      const load = [...spike(1000, 16), ...spike(1000 + gapMs, 16)];
      const result = await play({ name: `gap of ${gapMs} ms`, load, isolation });
      warm.push(result.warmForks);
    }
    expect(warm).toEqual([16, 8, 4, 0]);
  });
});

/** Times in ms. */
const expected = `
load       mode     fork  shell  service  requests  p50  p99  max  forks   warm  children  shells
step       request    20     60       50      1000   20   20   80   1000  100 %         7       3
step       shared     20     60       50      1000    0    0   80      1    0 %         1       1
step       session    20     60       50      1000    0   20   80     20   85 %        20       3
spike      request    20     60       50       250   20   80   80    250   69 %        51      32
spike      shared     20     60       50       250    0   80   80      6   17 %         6       5
spike      session    20     60       50       250    0   20   80     20   95 %        20       1
sawtooth   request    20     60       50      1996   20   32   80   1996  100 %        10       6
sawtooth   shared     20     60       50      1996    0    0   80      1    0 %         1       1
sawtooth   session    20     60       50      1996    0   20   80     20   90 %        20       2
slow ramp  request    20     60       50      2999   20   20   80   2999  100 %        10       6
slow ramp  shared     20     60       50      2999    0    0   80      1    0 %         1       1
slow ramp  session    20     60       50      2999    0    0   80     20   95 %        20       1
step       request   100    400      500      1000  100  400  500   1000   98 %        45      20
step       shared    100    400      500      1000    0  300  500      4   50 %         4       2
step       session   100    400      500      1000    0  500  500     20   20 %        20      16
spike      request   100    400      500       250  100  500  500    250   69 %        55      32
spike      shared    100    400      500       250    0  500  500      6   17 %         6       5
spike      session   100    400      500       250    0  100  500     20   90 %        20       2
sawtooth   request   100    400      500      1996  123  317  500   1996   93 %        69      32
sawtooth   shared    100    400      500      1996    0   12  500      6   83 %         6       1
sawtooth   session   100    400      500      1996    0  100  500     20   65 %        20       7
slow ramp  request   100    400      500      2999  112  182  500   2999   94 %        73      32
slow ramp  shared    100    400      500      2999    0    0  500      6   83 %         6       1
slow ramp  session   100    400      500      2999    0    0  500     20   85 %        20       3
`;
