import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import { failureOf, untilSettled } from "../../runtime/cli/deploy-wait.ts";
import type { WorkerVersion } from "../../runtime/client/mod.ts";
import { rejection } from "../support/agent-peer.ts";

const spec = WorkerSpec.parse({ module: { code: "export default {}" } });
const error = { code: "WORKER_LOAD_FAILED", message: "boom" };

function worker(more: Partial<WorkerVersion> = {}): WorkerVersion {
  return {
    ...{ name: "hello", version: 2, current: true, state: "cold" as const, spec },
    ...{ createdAt: "2026-01-31T12:00:00.000Z", ...more },
  };
}

/** A gateway that shows these one after the other, the last one for good. */
class Shown {
  readonly current: number[] = [];
  looks = 0;
  readonly #versions: WorkerVersion[];

  constructor(...versions: Partial<WorkerVersion>[]) {
    this.#versions = versions.map(worker);
  }

  async get(): Promise<WorkerVersion> {
    return this.#versions[Math.min(this.looks++, this.#versions.length - 1)]!;
  }

  async setCurrent(name: string, version: number): Promise<WorkerVersion> {
    this.current.push(version);
    return worker({ name, version });
  }
}

const timeoutMs = 5000;

describe("untilSettled()", () => {
  test("asks nothing when the version is ready", async () => {
    const gateway = new Shown({});
    const ready = worker({ state: "ready" });
    expect(await untilSettled(gateway, ready, { timeoutMs })).toBe(ready);
    expect(gateway.looks).toBe(0);
  });

  test("tells each step once", async () => {
    const step = { state: "preparing" as const, step: "booting" };
    const gateway = new Shown(step, step, { state: "ready" });
    const steps: string[] = [];
    await untilSettled(gateway, worker(), { timeoutMs, onStep: (text) => steps.push(text) });
    expect(steps).toEqual(["booting"]);
  });

  test("takes a failure from before the deployment for none", async () => {
    const failed = { state: "failed" as const, error };
    const gateway = new Shown(failed, { state: "preparing" }, { state: "ready" });
    expect(await untilSettled(gateway, worker(failed), { timeoutMs })).toMatchObject({ state: "ready" });
    const again = new Shown(failed, { state: "preparing" }, failed);
    expect(await untilSettled(again, worker(failed), { timeoutMs })).toMatchObject(failed);
    // Nobody has begun anew.
    const stays = new Shown(failed);
    expect(await untilSettled(stays, worker(failed), { timeoutMs, staleMs: 200 })).toMatchObject(failed);
  });

  test("brings a version to mind that nothing is done for, unless another one is current", async () => {
    const cold = new Shown({}, {}, { state: "ready" });
    await untilSettled(cold, worker(), { timeoutMs, coldMs: 200 });
    expect(cold.current).toEqual([2]);
    const other = new Shown({ current: false }, { current: false }, { state: "ready" });
    await untilSettled(other, worker(), { timeoutMs, coldMs: 0 });
    expect(other.current).toEqual([]);
  });

  test("ends with NOT_READY in time, and with the caller's signal", async () => {
    const late = await rejection(untilSettled(new Shown({}), worker(), { timeoutMs: 100 }));
    expect(late).toMatchObject({ code: "NOT_READY", message: "hello@2 is not ready after 0.1 s (cold)" });
    const signal = AbortSignal.timeout(50);
    await rejection(untilSettled(new Shown({}), worker(), { timeoutMs, signal }));
    expect(signal.aborted).toBe(true);
  });
});

describe("failureOf()", () => {
  const failed = worker({ state: "failed", error });

  test("leaves alone what somebody else has deployed meanwhile", async () => {
    const gateway = new Shown({ version: 3 });
    const { error, restored } = await failureOf(gateway, failed, worker({ version: 1 }));
    expect(restored).toBeUndefined();
    expect(gateway.current).toEqual([]);
    expect(error).toMatchObject({ code: "WORKER_LOAD_FAILED", message: "hello@2 is not ready: boom" });
  });

  test("tells the worker's failure first when the version before cannot be made current", async () => {
    const gateway = new Shown({});
    gateway.setCurrent = () => Promise.reject(new FlurryError("GATEWAY_UNREACHABLE", "It is gone"));
    const { error } = await failureOf(gateway, failed, worker({ version: 1 }));
    expect(error.message).toBe("hello@2 is not ready: boom");
    expect(error.hint).toBe("hello@1 could not be made current again: It is gone (GATEWAY_UNREACHABLE)");
  });

  test("keeps the hint of what failed", async () => {
    const hinted = worker({
      state: "failed",
      error: { code: "TASK_FAILED", message: "oom", hint: "more memory" },
    });
    const { error } = await failureOf(new Shown({}), hinted, worker({ version: 1 }));
    expect(error).toMatchObject({
      code: "WORKER_LOAD_FAILED",
      hint: "more memory; hello@1 is current again",
    });
  });
});
