import { afterAll, beforeAll, expect, test } from "bun:test";
import type { GatewayBenchResult } from "../../bench/gateway.ts";
import type { Distribution } from "../../runtime/stats.ts";
import { CliSandbox } from "../support/cli.ts";

let sandbox: CliSandbox;

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
}, 60_000);

function expectDistribution({ p50, p99, max, ...rest }: Distribution): void {
  expect(rest).toEqual({});
  expect(p99).toBeGreaterThanOrEqual(p50);
  expect(max).toBeGreaterThanOrEqual(p99);
}

test("flurry bench gateway --json prints what docs/cli.md says, and its figures fit together", async () => {
  const args = ["bench", "gateway", "--requests", "64", "--scripted", "50", "--tasks", "4", "--json"];
  const { status, stdout, stderr } = await sandbox.flurry(args);
  expect(stderr).toContain("Measuring");
  expect(status).toBe(0);
  const result: GatewayBenchResult = JSON.parse(stdout);
  for (const kind of ["submit", "read"] as const) {
    expect(Object.keys(result.http[kind])).toEqual(["1", "32"]);
    for (const { requestsPerSecond, latencyMs, bare, addedMs, ratio } of Object.values(result.http[kind])) {
      expect(requestsPerSecond).toBeGreaterThan(0);
      expect(bare.requestsPerSecond).toBeGreaterThan(0);
      expectDistribution(latencyMs);
      expectDistribution(bare.latencyMs);
      expect(addedMs.p50).toBeCloseTo(latencyMs.p50 - bare.latencyMs.p50);
      expect(addedMs.p99).toBeCloseTo(latencyMs.p99 - bare.latencyMs.p99);
      expect(ratio).toBeCloseTo(latencyMs.p50 / bare.latencyMs.p50);
    }
  }
  // A submission is on disk before it is answered: the bare server does nothing of the kind.
  expect(result.http.submit["1"]?.ratio).toBeGreaterThan(1);
  expect(result.http.scripted.tasks).toBe(50);
  expect(result.http.scripted.tasksPerSecond).toBeGreaterThan(0);
  const job = result.job!;
  expect([job.tasks, job.failed]).toEqual([4, 0]);
  expect(Object.keys(job.steps)).toEqual(["waitMs", "forkMs", "identifyMs", "runMs", "recordMs"]);
  for (const step of Object.values(job.steps)) expectDistribution(step);
  expect(job.submitToResultMs.max).toBeGreaterThanOrEqual(job.steps.runMs.p50);
  expect(job.seconds * 1000).toBeCloseTo(job.submitToResultMs.max);
}, 300_000);

test("flurry bench gateway --tasks 0 starts no VM and shows tables", async () => {
  const args = ["bench", "gateway", "--requests", "32", "--scripted", "10", "--tasks", "0"];
  const { status, stdout } = await sandbox.flurry(args);
  expect(status).toBe(0);
  expect(stdout).toMatch(/^submit, 32 at a time +\d+ /m);
  expect(stdout).toMatch(/^10 tasks without VMs: \d+ tasks\/s$/m);
  expect(stdout).not.toContain("forked VMs");
}, 120_000);
