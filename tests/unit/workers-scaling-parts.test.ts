import { describe, expect, test } from "bun:test";
import { type Isolation, rulesOf } from "../../runtime/workers/scaling/isolation.ts";
import { PeakWindow } from "../../runtime/workers/scaling/peak-window.ts";
import { ServiceTime } from "../../runtime/workers/scaling/service-time.ts";
import { ShellDemand } from "../../runtime/workers/scaling/shell-demand.ts";
import { WaitQueue } from "../../runtime/workers/scaling/wait-queue.ts";
import { Dice } from "../support/dice.ts";
import { openRouter } from "../support/workers-scaling-requests.ts";

describe("PeakWindow", () => {
  test("knows the largest value of the last span, and when it falls", () => {
    const window = new PeakWindow(100);
    window.set(3, 0);
    window.set(5, 10);
    window.set(1, 20);
    expect([window.peak(20), window.fallsAt]).toEqual([5, 120]);
    window.set(2, 30);
    window.set(0, 40);
    expect([window.peak(119), window.fallsAt]).toEqual([5, 120]);
    expect([window.peak(120), window.fallsAt]).toEqual([2, 140]);
    expect([window.peak(140), window.fallsAt]).toEqual([0, undefined]);
  });

  test("agrees with one that remembers everything", () => {
    const dice = new Dice(1);
    const window = new PeakWindow(50);
    const all: { value: number; from: number; until: number }[] = [];
    for (let now = 0; now < 5000; now += dice.int(0, 20)) {
      const value = dice.int(0, 9);
      window.set(value, now);
      if (all.length > 0) all.at(-1)!.until = now;
      all.push({ value, from: now, until: Number.POSITIVE_INFINITY });
      const seen = all.filter(({ until }) => until > now - 50).map((one) => one.value);
      expect(window.peak(now)).toBe(Math.max(...seen));
    }
  });
});

describe("ShellDemand", () => {
  test("keeps as many as were forked while one shell starts, and half of it after each half-life", () => {
    const demand = new ShellDemand({ startMs: 100, halfLifeMs: 1000, max: 20 });
    expect(demand.wanted(0)).toBe(0);
    for (let at = 0; at < 1000; at += 20) demand.forked(at);
    expect(demand.wanted(980)).toBe(5);
    expect(demand.wanted(1980)).toBe(3);
    expect(demand.wanted(2980)).toBe(1);
    expect(demand.wanted(980 + 1000 * Math.log2(2 * 5) + 1)).toBe(0);
  });

  test("says when fewer will do", () => {
    const demand = new ShellDemand({ startMs: 100, halfLifeMs: 1000, min: 1, max: 20 });
    for (let n = 0; n < 6; n++) demand.forked(0);
    const numbers: number[] = [];
    let now = 0;
    for (let at = demand.fallsAt(now); at !== undefined; at = demand.fallsAt(now)) {
      expect(demand.wanted(at - 1)).toBe(demand.wanted(now));
      now = at + 1;
      numbers.push(demand.wanted(now));
    }
    expect(numbers).toEqual([5, 4, 3, 2, 1]);
  });

  test("keeps within its bounds", () => {
    const demand = new ShellDemand({ min: 2, max: 4 });
    expect(demand.wanted(0)).toBe(2);
    for (let n = 0; n < 1000; n++) demand.forked(n / 100);
    expect(demand.wanted(10)).toBe(4);
    const none = new ShellDemand({ max: 0 });
    none.forked(0);
    expect([none.wanted(0), none.fallsAt(0)]).toEqual([0, undefined]);
  });
});

test("ServiceTime tells when those who wait will have been served, within bounds", () => {
  const time = new ServiceTime();
  expect(time.retryAfterSeconds(1000, 1)).toBe(1);
  time.record(500);
  expect(time.retryAfterSeconds(100, 10)).toBe(5);
  for (let n = 0; n < 100; n++) time.record(2000);
  expect(time.retryAfterSeconds(100, 10)).toBe(20);
  expect(time.retryAfterSeconds(1, 10)).toBe(1);
  expect(time.retryAfterSeconds(1e6, 1)).toBe(60);
});

test("WaitQueue is in the order of arrival, whoever leaves or comes back", () => {
  const queue = new WaitQueue<{ number: number; deadline: number }>();
  const [a, b, c] = [1, 2, 3].map((number) => ({ number, deadline: number * 10 }));
  for (const one of [a, b, c]) queue.add(one!);
  expect(queue.delete(b!)).toBe(true);
  expect(queue.delete(b!)).toBe(false);
  expect(queue.due(20)).toEqual([a!]);
  queue.add(b!);
  expect(queue.all()).toEqual([a!, b!, c!]);
  expect([queue.due(9), queue.due(99).length, queue.deadline]).toEqual([[], 3, 10]);
});

describe("options", () => {
  test("have defaults by mode", () => {
    expect(rulesOf({ mode: "request" })).toMatchObject({ concurrency: 1, maxRequests: 1 });
    expect(rulesOf({ mode: "session", idleMs: 7 })).toMatchObject({ concurrency: 10, idleMs: 7 });
    expect(rulesOf({ mode: "shared", concurrency: 2 })).toMatchObject({
      ...{ concurrency: 2, maxRequests: 10_000, maxAgeMs: 3_600_000 },
    });
  });

  test("have a child not counted on for more requests at once than it may serve", () => {
    expect(rulesOf({ mode: "shared", concurrency: 10, maxRequests: 3 }).concurrency).toBe(3);
  });

  test("are refused when they make no sense", () => {
    const wrong: Isolation[] = [
      { mode: "shared", concurrency: 0 },
      { mode: "shared", concurrency: 1.5 },
      { mode: "shared", maxRequests: 0 },
      { mode: "session", idleMs: 0 },
      { mode: "session", maxAgeMs: Number.NaN },
    ];
    for (const isolation of wrong) expect(() => rulesOf(isolation)).toThrow(/must be/);
    const open = (options: Parameters<typeof openRouter>[1]) => () =>
      openRouter({ mode: "request" }, options);
    expect(open({ maxChildren: 0 })).toThrow("maxChildren must be a whole number of at least 1: 0");
    expect(open({ maxQueue: 0 })).toThrow("maxQueue");
    expect(open({ attempts: -1 })).toThrow("attempts");
    expect(open({ queueMs: 0 })).toThrow("queueMs must be above 0: 0");
    expect(open({ shells: { min: 2, max: 1 } })).toThrow("shells.max");
  });
});

describe("RequestRouter.stats()", () => {
  test("tells what is going on, in numbers that stay as they were", async () => {
    const { ask, asks, time, router } = openRouter(
      { mode: "shared", concurrency: 2 },
      { maxChildren: 2, places: 1, shells: { startMs: 40, max: 3 } },
    );
    const requests = asks(3);
    await time.advance(0);
    const early = router.stats();
    expect(early).toMatchObject({ inFlight: 0, queued: 3, forks: 1, shells: 1 });
    expect(early.children).toMatchObject({ forking: 1, admitting: 1 });
    await time.advance(50);
    ask();
    requests[0]!.answer();
    await time.advance(0);
    const stats = router.stats();
    expect(stats).toMatchObject({ inFlight: 2, queued: 1, answered: 1, children: { busy: 1, admitting: 1 } });
    expect(stats.waits).toMatchObject({ count: 3, sumMs: 150 });
    const upTo = (ms: number) => stats.waits.classes.find(({ upToMs }) => upToMs === ms)?.count;
    expect([upTo(25), upTo(50), upTo(30_000)]).toEqual([0, 3, 3]);
    expect(early.waits.count).toBe(0);
    expect(early.waits.classes.every(({ count }) => count === 0)).toBe(true);
  });
});
