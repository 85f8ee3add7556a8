import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import type { ScheduledRun, WorkerLogRecord } from "../../runtime/api/mod.ts";
import type { Clock } from "../../runtime/clock.ts";
import type { GatewayRuntime } from "../../runtime/gateway/context.ts";
import type { CronEvent, ScheduledEnd } from "../../runtime/workers/js/js-scheduled.ts";
import type { ServedVersion } from "../../runtime/workers/js/js-services.ts";
import { noFigures } from "../../runtime/workers/js/request-figures.ts";
import { WorkerLogs } from "../../runtime/workers/js/worker-logs.ts";
import { eventually, GatewaySandbox, idleRuntime } from "../support/gateway-sandbox.ts";

type Script = (worker: ServedVersion, event: CronEvent) => ScheduledEnd | Promise<ScheduledEnd>;

/** A runtime whose workers' `scheduled()` is the test's. */
function scheduling(script: Script): () => GatewayRuntime {
  const requests = {
    handle: () => Promise.reject(new Error("This runtime answers nothing")),
    scheduled: async (worker: ServedVersion, event: CronEvent) => await script(worker, event),
    remove: () => undefined,
    figures: noFigures,
    logs: new WorkerLogs(),
  };
  return () => ({ ...idleRuntime(), requests });
}

const module = { code: "export default { scheduled() {} }" };

async function deploy(gateway: GatewaySandbox, name: string, more: object = {}): Promise<void> {
  await gateway.json(`/v1/workers/${name}`, { method: "PUT", json: { module, ...more } }, 201);
}

function call(gateway: GatewaySandbox, name: string, json: object = {}) {
  return gateway.json<ScheduledRun>(`/v1/workers/${name}/scheduled`, { method: "POST", json });
}

describe("POST /v1/workers/{name}/scheduled", () => {
  test("calls the current version, with its secrets, and says how it went", async () => {
    const runtime = scheduling(async ({ version, secrets }, { cron, time }) => {
      expect(Math.abs(Date.now() - time)).toBeLessThan(60_000);
      expect(await secrets()).toEqual({ A: "a" });
      const error = { code: "TASK_FAILED", message: "boom" };
      return { vm: `vm-${version}`, ms: 5, ...(cron === "0 0 * * *" && { error }) };
    });
    await using gateway = await GatewaySandbox.open({ runtime });
    await gateway.fetch("/v1/secrets/a", { method: "PUT", json: { value: "a" } });
    await deploy(gateway, "a", { secrets: { A: "a" } });
    await deploy(gateway, "a", { secrets: { A: "a" }, crons: ["*/5 * * * *"] });
    expect(await call(gateway, "a")).toMatchObject({
      ...{ name: "a", version: 2, cron: "*/5 * * * *", vm: "vm-2", ms: 5, outcome: "succeeded" },
    });
    const failed = await call(gateway, "a", { cron: "0 0 * * *" });
    expect(failed).toMatchObject({ outcome: "failed", error: { code: "TASK_FAILED", message: "boom" } });
    const { items } = await gateway.json<{ items: WorkerLogRecord[] }>("/v1/workers/a/logs");
    expect(items).toMatchObject([{ vm: "", level: "error" }]);
    expect(items[0]!.text).toEndWith("failed: boom (TASK_FAILED)");
    const metrics = await (await gateway.fetch("/metrics")).text();
    expect(metrics).toContain('flurry_scheduled_total{outcome="succeeded"} 1');
    expect(metrics).toContain('flurry_scheduled_total{outcome="failed"} 1');
  });

  test("answers with a problem when nothing was called, or what is asked for is none", async () => {
    const failures = [
      new FlurryError("BAD_ARGUMENT", "The worker has no scheduled()"),
      new FlurryError("WORKER_LOAD_FAILED", "It does not load"),
      new FlurryError("NOT_READY", "There was no VM"),
    ];
    const runtime = scheduling(() => Promise.reject(failures.shift()));
    await using gateway = await GatewaySandbox.open({ runtime });
    await deploy(gateway, "a");
    const asked = (name: string, json: object) =>
      gateway.problem(`/v1/workers/${name}/scheduled`, { method: "POST", json });
    expect(await asked("a", {})).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
    expect(await asked("a", {})).toMatchObject({ status: 422, code: "WORKER_LOAD_FAILED" });
    expect(await asked("a", {})).toMatchObject({ status: 503, code: "NOT_READY" });
    expect(await asked("b", {})).toMatchObject({ status: 404, code: "WORKER_NOT_FOUND" });
    expect(await asked("a", { cron: "now" })).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
  });
});

test("the times of a worker's crons are those of the gateway's clock, also after a restart", async () => {
  // Half a second before a whole minute, from when the gateway opens.
  const clockAt = (): Clock => {
    const offset = 60_000 - 500 - (Date.now() % 60_000);
    return { now: () => Date.now() + offset, monotonic: () => performance.now() };
  };
  const calls: (CronEvent & { version: number })[] = [];
  const runtime = scheduling(({ version }, event) => {
    calls.push({ version, ...event });
    return { vm: "vm-1", ms: 5 };
  });
  await using gateway = await GatewaySandbox.open({ runtime, clock: clockAt() });
  await deploy(gateway, "a", { crons: ["* * * * *"] });
  await eventually(() => calls.length > 0);
  expect(calls).toMatchObject([{ version: 1, cron: "* * * * *" }]);
  expect(calls[0]!.time % 60_000).toBe(0);
  await gateway.end();
  await using again = await GatewaySandbox.open({ dir: gateway.dir, runtime, clock: clockAt() });
  await eventually(() => calls.length > 1);
  expect(calls).toHaveLength(2);
  await again.end();
});
