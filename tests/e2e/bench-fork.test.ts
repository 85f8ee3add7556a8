import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { CliSandbox } from "../support/cli.ts";

interface Distribution {
  p50: number;
  p99: number;
  max: number;
}

const distributions = ["coldBootMs", "bareQemuStartMs", "pauseMs", "shellStartMs", "privateBytesPerChild"];
/** From waiting shells and without them, apart. */
const warmAndCold = ["forkRunningMs", "forkAnswerMs"];
const numbers = ["cores", "memMiB", "n", "descriptorBytes", "allRunningMs", "allAnsweredMs", "failures"];
/** What a reader needs to judge the others: the memory of a QEMU without a guest, and the aims. */
const more = ["barePrivateBytes", "identifyMs", "aims"];

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

function expectDistribution(value: unknown): void {
  const { p50, p99, max, ...rest } = value as Distribution;
  expect(rest).toEqual({});
  expect(p50).toBeGreaterThan(0);
  expect(p99).toBeGreaterThanOrEqual(p50);
  expect(max).toBeGreaterThanOrEqual(p99);
}

describe("flurry bench fork", () => {
  test("--json prints one object with every figure measured", async () => {
    const { status, stdout, stderr } = await sandbox.flurry([
      ...["bench", "fork", "--n", "3", "--boots", "2", "--memory", "128", "--json"],
    ]);
    expect(stderr).not.toContain("code:");
    expect(status).toBe(0);
    const result: Record<string, unknown> = JSON.parse(stdout);
    const expected = ["accel", "qemu", ...distributions, ...warmAndCold, ...numbers, ...more];
    expect(Object.keys(result).sort()).toEqual(expected.sort());
    for (const key of distributions) expectDistribution(result[key]);
    for (const key of warmAndCold) {
      const { warm, cold, ...rest } = result[key] as Record<string, unknown>;
      expect(rest).toEqual({});
      expectDistribution(warm);
      expectDistribution(cold);
    }
    const { kernelMs, hooksMs, totalMs } = result.identifyMs as Record<string, Distribution>;
    for (const times of [kernelMs, hooksMs, totalMs]) expectDistribution(times);
    expect(totalMs!.p50).toBeGreaterThan(kernelMs!.p50);
    for (const key of numbers) expect(result[key]).toEqual(expect.any(Number));
    expect(result).toMatchObject({ n: 3, memMiB: 128, failures: 0 });
    expect(result.accel).toMatch(/^(tcg|kvm)$/);
    expect(result.qemu).toMatch(/^QEMU emulator version \d/);
    expect(result.allAnsweredMs).toBeGreaterThanOrEqual(Number(result.allRunningMs));
    expect(result.descriptorBytes).toBeGreaterThan(0);
  });

  test("refuses a number of children that is none", async () => {
    const { status, stdout, stderr } = await sandbox.flurry(["bench", "fork", "--n", "0"]);
    expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
    expect(stderr).toContain("--n takes a whole number from 1 on");
  });
});
