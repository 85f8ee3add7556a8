import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import { Schedules } from "../../runtime/gateway/schedules.ts";
import type { StoredWorker } from "../../runtime/jobs/ports.ts";
import type { CronEvent, ScheduledEnd } from "../../runtime/workers/js/js-scheduled.ts";
import type { ServedVersion } from "../../runtime/workers/js/js-services.ts";
import { WorkerLogs } from "../../runtime/workers/js/worker-logs.ts";
import { rejection } from "../support/agent-peer.ts";
import { ManualClock } from "../support/jobs-clock.ts";

const MINUTE = 60_000;

function version(name: string, number: number, crons?: string[]): StoredWorker {
  return {
    ...{ name, version: number, current: true, state: "ready" },
    ...{ spec: WorkerSpec.parse({ module: { code: "" }, crons }), createdAt: "2026-01-31T12:00:00.000Z" },
    owner: "",
  };
}

interface Call {
  worker: string;
  event: CronEvent;
  signal: AbortSignal;
  end(error?: ScheduledEnd["error"]): void;
  fail(error: Error): void;
}

/** Schedules of workers in memory, with calls that the test ends. */
class Bench implements AsyncDisposable {
  readonly clock = new ManualClock();
  readonly workers = new Map<string, StoredWorker>();
  readonly calls: Call[] = [];
  readonly outcomes: string[] = [];
  readonly logs = new WorkerLogs();
  readonly ending = new AbortController();
  readonly schedules: Schedules;
  readFails = 0;
  readonly #listeners = new Set<(name: string) => void>();

  constructor({ drainMs = 0 } = {}) {
    const list = async () => {
      if (this.readFails-- > 0) throw new FlurryError("STORE_FAILED", "The store is away");
      return { items: [...this.workers.values()], next: undefined };
    };
    this.schedules = new Schedules({
      // Only what it asks of a store.
      store: { workers: { list }, secrets: {} } as never,
      hosts: {
        worker: async (name) => this.workers.get(name),
        onChange: (listener) => {
          this.#listeners.add(listener);
          return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
        },
      },
      requests: {
        logs: this.logs,
        scheduled: (worker, event, { signal }) => this.#call(worker, event, signal),
      },
      metrics: { scheduledEnded: (outcome) => this.outcomes.push(outcome) },
      ...{ clock: this.clock, after: this.clock.after },
      ...{ timeoutMs: 900_000, drainMs, ending: this.ending.signal },
    });
  }

  static async of(...workers: StoredWorker[]): Promise<Bench> {
    const bench = new Bench();
    for (const worker of workers) bench.workers.set(worker.name, worker);
    bench.schedules.start();
    await settled();
    return bench;
  }

  async deploy(worker: StoredWorker): Promise<void> {
    this.workers.set(worker.name, worker);
    await this.#changed(worker.name);
  }

  async remove(name: string): Promise<void> {
    this.workers.delete(name);
    await this.#changed(name);
  }

  async #changed(name: string): Promise<void> {
    for (const listener of this.#listeners) listener(name);
    await settled();
  }

  async advance(ms: number): Promise<void> {
    this.clock.advance(ms);
    await settled();
  }

  /** What was called, and for when. */
  get called(): string[] {
    return this.calls.map(({ worker, event: { cron, time } }) => {
      return `${worker} ${cron} ${new Date(time).toISOString().slice(11, 19)}`;
    });
  }

  texts(worker: string): string[] {
    return this.logs.read(worker, 0).map(({ text }) => text);
  }

  async #call(
    { name, version }: ServedVersion,
    event: CronEvent,
    signal: AbortSignal,
  ): Promise<ScheduledEnd> {
    const { promise, resolve, reject } = Promise.withResolvers<ScheduledEnd>();
    const end = (error?: ScheduledEnd["error"]) => resolve({ vm: "vm-1", ms: 5, error });
    this.calls.push({ worker: `${name}@${version}`, event, signal, end, fail: reject });
    signal.addEventListener("abort", () => reject(new FlurryError("ABORTED", "aborted")), { once: true });
    return await promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.ending.abort();
    await this.schedules[Symbol.asyncDispose]();
  }
}

/** All that can go on without a timer has gone on. */
async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

describe("Schedules", () => {
  test("call each worker's current version at the times of its crons", async () => {
    await using bench = await Bench.of(
      version("a", 1, ["*/5 * * * *"]),
      version("b", 3),
      version("c", 1, []),
    );
    await bench.advance(5 * MINUTE);
    bench.calls[0]!.end();
    await bench.deploy(version("a", 2, ["*/5 * * * *", "* * * * *"]));
    await bench.advance(5 * MINUTE - 1);
    for (const call of bench.calls) call.end();
    await settled();
    await bench.advance(1);
    expect(bench.called.slice(0, 2)).toEqual(["a@1 */5 * * * * 12:05:00", "a@2 * * * * * 12:06:00"]);
    expect(bench.called.slice(-2)).toEqual(["a@2 */5 * * * * 12:10:00", "a@2 * * * * * 12:10:00"]);
    await bench.remove("a");
    const before = bench.calls.length;
    await bench.advance(60 * MINUTE);
    expect(bench.calls.length).toBe(before);
  });

  test("skip a time whose call before goes on, also by another version, and say so in the worker's log", async () => {
    await using bench = await Bench.of(version("a", 1, ["* * * * *"]));
    await bench.advance(MINUTE);
    await bench.deploy(version("a", 2, ["* * * * *"]));
    await bench.advance(MINUTE);
    expect(bench.called).toEqual(["a@1 * * * * * 12:01:00"]);
    expect(bench.texts("a")).toEqual([
      'scheduled() for "* * * * *" at 2026-01-31T12:02:00.000Z skipped: the call before has not ended',
    ]);
    bench.calls[0]!.end();
    await settled();
    await bench.advance(MINUTE);
    expect(bench.called.slice(1)).toEqual(["a@2 * * * * * 12:03:00"]);
    expect(bench.outcomes).toEqual(["skipped", "succeeded"]);
  });

  test("tell of a failure of the worker, and call again only at the next time", async () => {
    await using bench = await Bench.of(version("a", 1, ["*/5 * * * *"]));
    await bench.advance(5 * MINUTE);
    bench.calls[0]!.end({ code: "TASK_FAILED", message: "boom" });
    await settled();
    await bench.advance(4 * MINUTE);
    expect(bench.calls).toHaveLength(1);
    expect(bench.texts("a")[0]).toEndWith("failed: boom (TASK_FAILED)");
    await bench.advance(MINUTE);
    bench.calls[1]!.fail(new FlurryError("WORKER_LOAD_FAILED", "It does not load"));
    await settled();
    await bench.advance(4 * MINUTE);
    expect(bench.calls).toHaveLength(2);
    expect(bench.outcomes).toEqual(["failed", "failed"]);
  });

  test("call once more after 5 s what the infrastructure has kept from being called", async () => {
    await using bench = await Bench.of(version("a", 1, ["*/5 * * * *"]));
    await bench.advance(5 * MINUTE);
    bench.calls[0]!.fail(new FlurryError("FORK_FAILED", "no fork"));
    await settled();
    await bench.advance(4999);
    expect(bench.calls).toHaveLength(1);
    await bench.advance(1);
    expect(bench.called).toEqual(["a@1 */5 * * * * 12:05:00", "a@1 */5 * * * * 12:05:00"]);
    bench.calls[1]!.end();
    await settled();
    expect(bench.outcomes).toEqual(["succeeded"]);
    await bench.advance(5 * MINUTE);
    for (const again of [2, 3]) {
      bench.calls[again]!.fail(new FlurryError("FORK_FAILED", "no fork"));
      await settled();
      await bench.advance(5000);
    }
    expect(bench.calls).toHaveLength(4);
    expect(bench.outcomes).toEqual(["succeeded", "infrastructure"]);
    expect(bench.texts("a").at(-1)).toEndWith("failed: no fork (FORK_FAILED)");
  });

  test("do not call again when the failure came late: the next time may be near", async () => {
    await using bench = await Bench.of(version("a", 1, ["*/5 * * * *"]));
    await bench.advance(5 * MINUTE);
    await bench.advance(MINUTE);
    bench.calls[0]!.fail(new FlurryError("NOT_READY", "no VM"));
    await settled();
    await bench.advance(MINUTE);
    expect(bench.calls).toHaveLength(1);
    expect(bench.outcomes).toEqual(["infrastructure"]);
  });

  test("read the crons again when the store fails", async () => {
    await using bench = new Bench();
    bench.workers.set("a", version("a", 1, ["* * * * *"]));
    bench.readFails = 2;
    bench.schedules.start();
    await settled();
    await bench.advance(5000);
    await bench.advance(5000);
    await bench.advance(MINUTE);
    expect(bench.calls).toHaveLength(1);
  });

  test("make up for nothing that came while nobody looked, and count it", async () => {
    await using bench = await Bench.of(version("a", 1, ["*/5 * * * *"]));
    bench.clock.jump(16 * MINUTE);
    await bench.advance(30_000);
    expect(bench.calls).toEqual([]);
    expect(bench.outcomes).toEqual(["missed"]);
    await bench.advance(4 * MINUTE);
    expect(bench.called).toEqual(["a@1 */5 * * * * 12:20:00"]);
  });

  test("call nothing new when the gateway ends, let calls go on for its drain, and abort them then", async () => {
    const bench = new Bench({ drainMs: 2 * MINUTE });
    bench.workers.set("a", version("a", 1, ["* * * * *"]));
    bench.schedules.start();
    await settled();
    await bench.advance(MINUTE);
    bench.ending.abort();
    await bench.advance(MINUTE);
    expect(bench.calls).toHaveLength(1);
    let over = false;
    const disposed = bench[Symbol.asyncDispose]().then(() => {
      over = true;
    });
    await bench.advance(MINUTE - 1);
    expect([over, bench.calls[0]!.signal.aborted]).toEqual([false, false]);
    await bench.advance(1);
    await disposed;
    expect(bench.calls[0]!.signal.aborted).toBe(true);
    expect(bench.outcomes).toEqual([]);
  });
});

describe("Schedules.trigger()", () => {
  test("calls at once, beside the times of the clock, and tells how it went", async () => {
    await using bench = await Bench.of(version("a", 2, ["* * * * *"]));
    await bench.advance(MINUTE);
    const signal = new AbortController().signal;
    const good = bench.schedules.trigger("a", undefined, signal);
    const bad = bench.schedules.trigger("a", "0 0 * * *", signal);
    await settled();
    bench.calls[1]!.end();
    bench.calls[2]!.end({ code: "TASK_FAILED", message: "boom" });
    const shared = { name: "a", version: 2, vm: "vm-1", ms: 5, scheduledTime: "2026-01-31T12:01:00.000Z" };
    expect(await good).toEqual({ ...shared, cron: "* * * * *", outcome: "succeeded" });
    const error = { code: "TASK_FAILED", message: "boom" };
    expect(await bad).toEqual({ ...shared, cron: "0 0 * * *", outcome: "failed", error });
  });

  test("fails where there is nothing to call, and when nobody wants it any more", async () => {
    await using bench = await Bench.of(version("a", 1));
    const none = bench.schedules.trigger("b", undefined, new AbortController().signal);
    expect(await rejection(none)).toMatchObject({ code: "WORKER_NOT_FOUND" });
    const leave = new AbortController();
    const left = bench.schedules.trigger("a", undefined, leave.signal);
    await settled();
    expect(bench.calls[0]!.event.cron).toBe("");
    leave.abort();
    expect(await rejection(left)).toMatchObject({ code: "ABORTED" });
  });
});
