import { describe, expect, test } from "bun:test";
import { openBench, resultsOf } from "../support/jobs-setup.ts";

describe("Dispatcher", () => {
  test("runs 10,000 tasks, each with one result, and never more at a time than there are slots", async () => {
    await using bench = await openBench({
      slots: 8,
      script: async (task) => {
        await task.print(`task ${task.index}`);
        return { exitCode: 0 };
      },
    });
    const id = await bench.submit({ count: 10_000 });
    const { job } = await bench.ended(id);
    expect(job.state).toBe("succeeded");
    expect(job.tasks).toMatchObject({ total: 10_000, succeeded: 10_000, running: 0, queued: 0 });
    const results = await resultsOf(bench.store, id);
    expect(results.map(({ index }) => index)).toEqual(Array.from({ length: 10_000 }, (_, index) => index));
    expect(results.every(({ stdout, index }) => stdout === `task ${index}`)).toBe(true);
    expect(bench.runtime.runs).toBe(10_000);
    expect(bench.runtime.most).toBeLessThanOrEqual(8);
    expect(bench.dispatcher.running).toBe(0);
  }, 120_000);
});
