import { describe, expect, test } from "bun:test";
import { AheadRule } from "../../runtime/workers/scaling/ahead-rule.ts";
import { type Isolation, rulesOf } from "../../runtime/workers/scaling/isolation.ts";
import { PeakWindow } from "../../runtime/workers/scaling/peak-window.ts";
import { ServiceTime } from "../../runtime/workers/scaling/service-time.ts";
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

describe("AheadRule", () => {
  /** A rule for which so many children were taken, one each `everyMs`, and have all answered. */
  function ruleAfter(max: number, taken: number, everyMs: number): AheadRule {
    const rule = new AheadRule(max);
    for (let n = 0; n < taken; n++) {
      rule.taken(n * everyMs);
      rule.answered(n * everyMs);
    }
    return rule;
  }

  test("wants as many as the busiest second took, and half of it after each half-life", () => {
    const rule = ruleAfter(20, 50, 200);
    const last = 49 * 200;
    expect(new AheadRule(20).wanted(0)).toBe(0);
    expect(rule.wanted(last)).toBe(5);
    expect(rule.wanted(last + 30_000)).toBe(3);
    expect(rule.wanted(last + 60_000)).toBe(1);
    expect(rule.wanted(last + 30_000 * Math.log2(2 * 5) + 1)).toBe(0);
    rule.taken(last + 600_000);
    expect(rule.wanted(last + 600_000)).toBe(1);
  });

  test("wants no more than its bound, nor any where that is 0", () => {
    expect(ruleAfter(4, 1000, 1).wanted(1000)).toBe(4);
    const none = ruleAfter(0, 5, 1);
    expect([none.wanted(5), none.wantsMore(0, 5)]).toEqual([0, false]);
  });

  test("lets one be forked for each child that has answered, and for no more than its bound", () => {
    const rule = new AheadRule(3);
    for (let n = 0; n < 5; n++) rule.taken(0);
    expect(rule.wantsMore(0, 0)).toBe(false);
    rule.answered(0);
    expect([rule.wantsMore(0, 0), rule.wantsMore(3, 0)]).toEqual([true, false]);
    rule.forked();
    expect(rule.wantsMore(0, 0)).toBe(false);
    for (let n = 0; n < 5; n++) rule.answered(0);
    for (let n = 0; n < 3; n++) {
      expect(rule.wantsMore(0, 0)).toBe(true);
      rule.forked();
    }
    expect(rule.wantsMore(0, 0)).toBe(false);
    rule.answered(0);
    expect([rule.wantsMore(0, 10_000), rule.wantsMore(0, 10_001)]).toEqual([true, false]);
  });

  test("wants none when it is stopped", () => {
    const rule = ruleAfter(4, 4, 1);
    rule.stop();
    expect([rule.wanted(4), rule.wantsMore(0, 4)]).toEqual([0, false]);
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
    expect(open({ ahead: -1 })).toThrow("ahead must be a whole number of at least 0: -1");
  });
});

describe("RequestRouter.stats()", () => {
  test("tells what is going on, in numbers that stay as they were", async () => {
    const { ask, asks, time, router } = openRouter(
      { mode: "shared", concurrency: 2 },
      { maxChildren: 2, places: 1 },
    );
    const requests = asks(3);
    await time.advance(0);
    const early = router.stats();
    expect(early).toMatchObject({ inFlight: 0, queued: 3, forks: 1 });
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
