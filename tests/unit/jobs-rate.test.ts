import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { Intake } from "../../runtime/jobs/intake.ts";
import { Rate } from "../../runtime/jobs/rate.ts";
import { rejection } from "../support/agent-peer.ts";
import { ManualClock } from "../support/jobs-clock.ts";

describe("Rate", () => {
  test("tells how often something happens, from the beginning on and when it changes", () => {
    const clock = new ManualClock();
    const rate = new Rate(clock);
    expect(rate.perSecond).toBe(0);
    const happen = (seconds: number, eachMs: number) => {
      for (let ms = 0; ms < seconds * 1000; ms += eachMs) {
        clock.advance(eachMs);
        rate.count();
      }
    };
    happen(5, 100);
    expect(rate.perSecond).toBeCloseTo(10, 0);
    happen(300, 100);
    expect(rate.perSecond).toBeCloseTo(10, 0);
    happen(600, 1000);
    expect(rate.perSecond).toBeCloseTo(1, 1);
    clock.advance(3_600_000);
    expect(rate.perSecond).toBeLessThan(0.001);
  });
});

describe("Intake", () => {
  test("tells when there is room again, by how fast tasks end", async () => {
    const load = async () => ({ activeJobs: 1, waitingTasks: 1000, runningTasks: 0 });
    const wait = async (endedPerSecond: number) => {
      const intake = new Intake({
        jobs: { load },
        waitingTasks: 1200,
        endedPerSecond: () => endedPerSecond,
      });
      using incoming = await intake.enter("", {});
      const error = await rejection(incoming.add(300));
      return error instanceof FlurryError ? error.retryAfterSeconds : undefined;
    };
    expect([await wait(0), await wait(10), await wait(1e6), await wait(1e-6)]).toEqual([30, 10, 1, 3600]);
  });
});
