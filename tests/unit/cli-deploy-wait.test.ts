import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import { failureOf, untilSettled } from "../../runtime/cli/deploy-wait.ts";
import type { WorkerStatus, WorkerVersion } from "../../runtime/client/mod.ts";
import { rejection } from "../support/agent-peer.ts";

const error = { code: "WORKER_LOAD_FAILED", message: "boom" };

function status(more: Partial<WorkerStatus> = {}): WorkerStatus {
  return { name: "hello", version: 2, current: true, state: "cold", seen: "", ...more };
}

function worker(more: Partial<WorkerVersion> = {}): WorkerVersion {
  const spec = WorkerSpec.parse({ module: { code: "export default {}" } });
  return {
    ...{ name: "hello", version: 2, current: true, state: "cold" as const, spec },
    ...{ createdAt: "2026-01-31T12:00:00.000Z", ...more },
  };
}

/** A gateway that shows these one after the other, each as soon as it is asked for what comes after the one before. */
class Shown {
  readonly current: number[] = [];
  /** What it was asked for. */
  readonly asked: { after?: string | undefined; waitMs?: number | undefined }[] = [];
  readonly #shown: WorkerStatus[];

  constructor(...shown: Partial<WorkerStatus>[]) {
    this.#shown = shown.map((each, index) => status({ seen: String(index), ...each }));
  }

  async get(): Promise<WorkerVersion> {
    return worker(this.#shown[0]);
  }

  async state(_name: string, query: { after?: string | undefined; waitMs?: number | undefined }) {
    const { after, waitMs } = query;
    this.asked.push({ after, waitMs });
    const next = this.#shown[after === undefined ? 0 : Number(after) + 1];
    if (next) return next;
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    return this.#shown.at(-1)!;
  }

  async setCurrent(name: string, version: number): Promise<WorkerVersion> {
    this.current.push(version);
    return worker({ name, version });
  }
}

const timeoutMs = 5000;
const deployed = { name: "hello", version: 2 };

describe("untilSettled()", () => {
  test("asks once when the version is ready, or has failed", async () => {
    for (const state of ["ready", "failed"] as const) {
      const gateway = new Shown({ state });
      expect(await untilSettled(gateway, deployed, { timeoutMs })).toMatchObject({ state });
      expect(gateway.asked).toEqual([{ after: undefined, waitMs: undefined }]);
    }
  });

  test("tells each step, and asks for what comes after it", async () => {
    const steps: string[] = [];
    const preparing = { state: "preparing" as const };
    const gateway = new Shown(
      preparing,
      { ...preparing, step: "booting" },
      { ...preparing, step: "booting", current: false },
      { ...preparing, step: "freezing" },
      { state: "failed", error },
    );
    const settled = await untilSettled(gateway, deployed, { timeoutMs, onStep: (text) => steps.push(text) });
    expect(settled).toMatchObject({ state: "failed", error });
    expect(steps).toEqual(["booting", "freezing"]);
    expect(gateway.asked.map(({ after }) => after)).toEqual([undefined, "0", "1", "2", "3"]);
    for (const { waitMs } of gateway.asked.slice(1)) expect(waitMs).toBeWithin(1, timeoutMs + 1);
    expect(gateway.current).toEqual([]);
  });

  test("brings a version to mind that nothing is done for, unless another one is current", async () => {
    const cold = new Shown({}, { state: "preparing" }, { state: "ready" });
    await untilSettled(cold, deployed, { timeoutMs });
    expect(cold.current).toEqual([2]);
    const other = new Shown({ current: false }, { state: "ready" });
    await untilSettled(other, deployed, { timeoutMs });
    expect(other.current).toEqual([]);
  });

  test("ends with NOT_READY in time", async () => {
    const gateway = new Shown({ state: "preparing", step: "booting" });
    const late = await rejection(untilSettled(gateway, deployed, { timeoutMs: 100 }));
    const message = "hello@2 is not ready after 0.1 s (preparing: booting)";
    expect(late).toMatchObject({ code: "NOT_READY", message });
    expect(gateway.asked.length).toBeLessThan(5);
  });
});

describe("failureOf()", () => {
  const failed = status({ state: "failed", error });

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
    const hinted = status({
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
