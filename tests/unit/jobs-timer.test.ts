import { expect, test } from "bun:test";
import { systemAfter } from "../../runtime/jobs/timer.ts";

test("a timer never comes before its time, also when that is no whole number of milliseconds", async () => {
  const early = async (ms: number) => {
    const began = performance.now();
    const { promise, resolve } = Promise.withResolvers<void>();
    using _timer = systemAfter(ms, resolve);
    await promise;
    return performance.now() - began < ms;
  };
  const waits = Array.from({ length: 100 }, (_, index) => 20 + index / 100);
  expect((await Promise.all(waits.map(early))).filter((isEarly) => isEarly)).toEqual([]);
});
