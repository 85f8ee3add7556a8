import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { PagesBenchResult } from "../../bench/pages.ts";
import { CliSandbox } from "../support/cli.ts";

let sandbox: CliSandbox;

setDefaultTimeout(180_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

function expectMeasured({ p50, p99, max }: { p50: number; p99: number; max: number }): void {
  expect(p50).toBeGreaterThan(0);
  expect(p99).toBeGreaterThanOrEqual(p50);
  expect(max).toBeGreaterThanOrEqual(p99);
}

describe("flurry bench pages", () => {
  test("--json prints one object with every figure measured", async () => {
    const options = [
      "--n",
      "2",
      "--memory",
      "128",
      "--filled",
      "8",
      "--touches",
      "512",
      "--samples",
      "2",
      "--json",
    ];
    const { status, stdout, stderr } = await sandbox.flurry(["bench", "pages", ...options]);
    expect(stderr).not.toContain("code:");
    expect(status).toBe(0);
    const result: PagesBenchResult & { aims: unknown[] } = JSON.parse(stdout);
    const keys = [
      "accel",
      "aims",
      "children",
      "cores",
      "dataPages",
      "faults",
      "memMiB",
      "qemu",
      "streamMBps",
    ];
    expect(Object.keys(result).sort()).toEqual(keys);
    const { faults, streamMBps, children, dataPages } = result;
    // The program's own pages, and a kernel beside them.
    expect(dataPages).toBeGreaterThan(8 * 256);
    expectMeasured(faults.serviceUs);
    expectMeasured(faults.placedUs);
    expect(faults.placedUs.p50).toBeGreaterThan(faults.serviceUs.p50);
    for (const guest of Object.values(faults.guestUs)) expectMeasured(guest);
    // A page that has to come costs more than one that is there.
    expect(faults.guestUs.lazy.p50).toBeGreaterThan(faults.guestUs.lazy.present);
    expectMeasured(streamMBps.memserver);
    expectMeasured(streamMBps.qemu);
    expect(children.map(({ n }) => n)).toEqual([1, 2]);
    for (const { mapped, lazy, lazyWorkingSet } of children) {
      for (const one of [mapped, lazy, lazyWorkingSet]) {
        expectMeasured(one.answerMs);
        expectMeasured(one.resultMs);
        expect(one.resultMs.p50).toBeGreaterThan(one.answerMs.p50);
      }
      expectMeasured(lazy.faults);
      expectMeasured(lazy.movedShare);
      expect(lazyWorkingSet.faults.p50).toBeLessThan(lazy.faults.p50);
    }
    expect(result.aims).not.toEqual([]);
  });

  test("refuses to touch more pages than are filled", async () => {
    const { status, stdout, stderr } = await sandbox.flurry(["bench", "pages", "--filled", "1"]);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toContain("--touches 8192 are more pages than --filled 1 MiB has");
  });
});
