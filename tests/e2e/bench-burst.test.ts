import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Aim } from "../../bench/aims.ts";
import type { BurstBenchResult } from "../../bench/burst.ts";
import { CliSandbox } from "../support/cli.ts";

let sandbox: CliSandbox;

beforeAll(() => {
  sandbox = new CliSandbox();
});

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
}, 60_000);

test("flurry bench burst --json answers a burst in forks without an error, and figures that fit together", async () => {
  const args = ["bench", "burst", "--n", "4", "--memory", "256", "--boots", "1", "--alone", "4", "--json"];
  const { status, stdout, stderr } = await sandbox.flurry(args);
  expect(stderr).toContain("Measuring");
  expect(status).toBe(0);
  const result: BurstBenchResult & { aims: Aim[] } = JSON.parse(stdout);
  expect([result.n, result.memMiB, result.cold.boots]).toEqual([4, 256, 1]);
  const bursts = [result.request, result.ahead, result.shared, result.host];
  expect(bursts.map(({ errors }) => errors)).toEqual([0, 0, 0, 0]);
  // Each request has a child of its own, and none is forked in vain.
  expect(result.request.children).toBe(4);
  expect(result.shared.children).toBeLessThan(4);
  const { forked, ahead } = result.alone;
  for (const ttfbMs of [...[...bursts, result.cold].map((one) => one.ttfbMs), forked, ahead]) {
    expect(ttfbMs.p50).toBeGreaterThan(0);
    expect(ttfbMs.max).toBeGreaterThanOrEqual(ttfbMs.p50);
  }
  const { goneMs } = result;
  expect([goneMs.p50 >= 0, goneMs.p99 >= goneMs.p50, goneMs.max >= goneMs.p99]).toEqual([true, true, true]);
  expect(result.aims).toEqual([
    {
      name: "answer's end to its VM gone, max",
      value: goneMs.max,
      below: 1000,
      unit: "ms",
      met: goneMs.max < 1000,
    },
  ]);
  expect(result.request.privateBytes).toBeGreaterThan(0);
  expect(ahead.p50).toBeLessThan(forked.p50);
  // A fork that begins with the worker loaded does far less than a VM that boots and loads it.
  expect(result.request.ttfbMs.p50).toBeLessThan(result.cold.ttfbMs.p50);
}, 600_000);
