import { describe, expect, test } from "bun:test";
import { CronTimer } from "../../runtime/gateway/cron-timer.ts";
import type { After } from "../../runtime/jobs/timer.ts";
import { ManualClock } from "../support/jobs-clock.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

/** A timer at noon, and what it tells: when it told, and of which time. */
function timerAt(clock: ManualClock, after: After = clock.after) {
  const due: string[] = [];
  const missed: string[] = [];
  const at = (time: number) => new Date(time).toISOString().slice(11, 23);
  const timer = new CronTimer({
    ...{ clock, after },
    onDue: (worker, cron, time) => {
      // Never early, and never a minute late.
      expect(clock.now() - time).toBeWithin(0, MINUTE);
      due.push(`${worker} ${cron} ${at(time)}`);
    },
    onMissed: (worker, cron, time) => missed.push(`${worker} ${cron} ${at(time)}`),
  });
  return { timer, due, missed };
}

describe("CronTimer", () => {
  test("tells each time of each cron once, at that time", () => {
    const clock = new ManualClock();
    const { timer, due, missed } = timerAt(clock);
    timer.set("a", ["*/5 * * * *", "7 * * * *"]);
    timer.set("b", ["*/10 * * * *"]);
    clock.advance(4 * MINUTE + 59_999);
    expect(due).toEqual([]);
    clock.advance(1);
    expect(due).toEqual(["a */5 * * * * 12:05:00.000"]);
    clock.advance(5 * MINUTE);
    expect(due.slice(1)).toEqual([
      "a 7 * * * * 12:07:00.000",
      "a */5 * * * * 12:10:00.000",
      "b */10 * * * * 12:10:00.000",
    ]);
    clock.advance(24 * HOUR);
    expect(due.length).toBe(4 + 24 * (12 + 1 + 6));
    expect(new Set(due).size).toBe(24 * 12 + 24 + 24 * 6);
    expect(missed).toEqual([]);
  });

  test("waits again when a timer is early, and long waits in pieces", () => {
    const clock = new ManualClock();
    const waits: number[] = [];
    const { timer, due } = timerAt(clock, (ms, callback) => {
      waits.push(ms);
      return clock.after(ms > 1 ? ms - 1 : ms, callback);
    });
    timer.set("a", ["0 3 1 3 *"]);
    clock.advance((28 * 24 + 15) * HOUR - 1);
    expect(due).toEqual([]);
    clock.advance(1);
    expect(due).toEqual(["a 0 3 1 3 * 03:00:00.000"]);
    expect(waits.filter((ms) => ms > 30_000)).toEqual([]);
  });

  test("keeps what is due when crons change around it, and forgets what is gone", () => {
    const clock = new ManualClock();
    const { timer, due } = timerAt(clock);
    timer.set("a", ["*/5 * * * *", "*/2 * * * *"]);
    clock.advance(1 * MINUTE);
    timer.set("a", ["*/5 * * * *", "*/3 * * * *"]);
    clock.advance(2 * MINUTE);
    expect(due).toEqual(["a */3 * * * * 12:03:00.000"]);
    timer.set("a", []);
    clock.advance(HOUR);
    expect(due).toHaveLength(1);
    timer.set("a", ["* * * * *"]);
    timer[Symbol.dispose]();
    timer.set("b", ["* * * * *"]);
    clock.advance(HOUR);
    expect(due).toHaveLength(1);
  });

  test("skips what has passed when the clock is set forward, but for the last minute", () => {
    const clock = new ManualClock();
    const { timer, due, missed } = timerAt(clock);
    timer.set("a", ["* * * * *", "15 * * * *"]);
    clock.advance(10_000);
    clock.jump(3 * HOUR);
    clock.advance(30_000);
    expect(missed).toEqual(["a * * * * * 12:01:00.000", "a 15 * * * * 12:15:00.000"]);
    expect(due).toEqual(["a * * * * * 15:00:00.000"]);
    clock.advance(30_000);
    expect(due.slice(1)).toEqual(["a * * * * * 15:01:00.000"]);
  });

  test("is late, and not twice there, when the clock is set forward past a time by seconds", () => {
    const clock = new ManualClock();
    const { timer, due, missed } = timerAt(clock);
    timer.set("a", ["* * * * *"]);
    clock.advance(45_000);
    clock.jump(20_000);
    clock.advance(30_000);
    clock.advance(30_000);
    expect(due).toEqual(["a * * * * * 12:01:00.000", "a * * * * * 12:02:00.000"].slice(0, due.length));
    expect(due.length).toBeGreaterThan(0);
    expect(missed).toEqual([]);
  });

  test("brings no time twice when the clock is set back a little", () => {
    const clock = new ManualClock();
    const { timer, due } = timerAt(clock);
    timer.set("a", ["*/5 * * * *"]);
    clock.advance(6 * MINUTE);
    clock.jump(-3 * MINUTE);
    clock.advance(6 * MINUTE);
    expect(due).toEqual(["a */5 * * * * 12:05:00.000"]);
    clock.advance(MINUTE);
    expect(due).toEqual(["a */5 * * * * 12:05:00.000", "a */5 * * * * 12:10:00.000"]);
  });

  test("goes by the new time when the clock is set back by days: the old one was wrong", () => {
    const clock = new ManualClock();
    const { timer, due } = timerAt(clock);
    timer.set("a", ["0 * * * *"]);
    clock.advance(30 * MINUTE);
    clock.jump(-48 * HOUR);
    clock.advance(30 * MINUTE);
    expect(due).toEqual(["a 0 * * * * 13:00:00.000"]);
  });
});
