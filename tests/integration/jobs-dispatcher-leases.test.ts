import { describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import type { Store } from "../../runtime/jobs/ports.ts";
import { ManualClock } from "../support/jobs-clock.ts";
import { HeldTasks, withChanges } from "../support/jobs-held.ts";
import { blobFiles, openBench, resultsOf, settle } from "../support/jobs-setup.ts";
import type { ScriptedTask } from "../support/scripted-runtime.ts";

const YEAR_MS = 366 * 86_400_000;

describe("Dispatcher", () => {
  test("renews its leases as long as a task takes", async () => {
    const clock = new ManualClock();
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ clock, after: clock.after, script, leaseMs: 30_000 });
    const id = await bench.submit({ count: 1 });
    await tasks.begun(1);
    for (let n = 0; n < 50; n++) {
      clock.advance(10_000);
      await settle();
    }
    expect(bench.runtime.runs).toBe(1);
    tasks.end();
    await bench.ended(id);
    expect(await resultsOf(bench.store, id)).toHaveLength(1);
    expect(bench.runtime.runs).toBe(1);
  });

  test("gives an attempt up whose lease is lost: nothing is recorded twice, nothing of it is left", async () => {
    const clock = new ManualClock();
    let renewals = true;
    const around = (store: Store): Store => ({
      ...store,
      queue: withChanges(store.queue, {
        renew: async (tokens: readonly string[], leaseMs: number) => {
          if (renewals) return await store.queue.renew(tokens, leaseMs);
          throw new FlurryError("STORE_FAILED", "No renewals");
        },
      }),
    });
    const left = Promise.withResolvers<void>();
    const script = async (task: ScriptedTask) => {
      await task.leave("out.txt", task.vm);
      if (task.vm !== "vm-1") return { exitCode: 0 };
      left.resolve();
      // Deaf: it ends with 0 long after it was given up.
      return await new Promise<{ exitCode: number }>((resolve) => {
        task.signal.addEventListener("abort", () => setImmediate(() => resolve({ exitCode: 0 })));
      });
    };
    await using bench = await openBench({ clock, after: clock.after, script, around });
    const id = await bench.submit({ count: 1 });
    await left.promise;
    renewals = false;
    await settle();
    clock.advance(30_000);
    const { job } = await bench.ended(id);
    expect(job.tasks).toMatchObject({ total: 1, succeeded: 1 });
    expect(bench.runtime.runs).toBe(2);
    const results = await resultsOf(bench.store, id);
    expect(results).toMatchObject([{ attempt: 1, artifacts: 1 }]);
    await settle();
    expect(blobFiles(bench, id)).toHaveLength(1);
    const { blob } = (await bench.store.jobs.artifact(id, 0, "out.txt"))!;
    expect(await new Response(await bench.store.blobs.get(blob)).text()).toBe("vm-2");
  });

  test("aborts what runs of a job that is canceled, and records it as canceled", async () => {
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ script, slots: 3 });
    const other = await bench.submit({ count: 1 });
    const id = await bench.submit({ count: 1000 });
    await tasks.begun(2);
    await bench.jobs.cancel(id, "Canceled by ci");
    const { job } = await bench.ended(id);
    expect(job).toMatchObject({ state: "canceled", reason: "Canceled by ci" });
    expect(job.tasks).toMatchObject({ total: 1000, canceled: 1000, running: 0 });
    const results = await resultsOf(bench.store, id);
    expect(results).toHaveLength(1000);
    expect((await bench.store.jobs.get(other))?.job.state).toBe("running");
    expect(bench.runtime.live.size).toBe(1);
    tasks.end();
    await bench.ended(other);
  });

  test("cancels a task whose parent is still being made", async () => {
    const preparing = Promise.withResolvers<void>();
    const prepare = (_family: string, _spec: unknown, signal: AbortSignal) => {
      preparing.resolve();
      return new Promise<void>((_, reject) => signal.addEventListener("abort", reject));
    };
    await using bench = await openBench({ prepare });
    const id = await bench.submit({ count: 2 });
    await preparing.promise;
    await bench.jobs.cancel(id, "Canceled");
    expect((await bench.ended(id)).job.tasks).toMatchObject({ canceled: 2 });
    expect(bench.runtime.runs).toBe(0);
  });

  test("is not moved by a wall clock that jumps a year on or back", async () => {
    const clock = new ManualClock();
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ clock, after: clock.after, script, slots: 1, random: () => 1 });
    const retry = { maxAttempts: 2, backoff: { initialMs: 60_000, factor: 1, maxMs: 60_000 } };
    const id = await bench.submit({ count: 1 }, { retry });
    await tasks.begun(1);
    clock.jump(YEAR_MS);
    clock.advance(10_000);
    await settle();
    expect(bench.runtime.live.size).toBe(1);
    tasks.end(1);
    await bench.until(id, ({ job }) => job.tasks.retrying === 1);
    clock.jump(-2 * YEAR_MS);
    await settle();
    clock.advance(59_999);
    await settle();
    expect(bench.runtime.runs).toBe(1);
    clock.jump(3 * YEAR_MS);
    await settle();
    expect(bench.runtime.runs).toBe(1);
    clock.advance(1);
    await tasks.begun(1);
    tasks.end();
    await bench.ended(id);
    expect(await resultsOf(bench.store, id)).toMatchObject([{ attempt: 2, state: "succeeded" }]);
  });

  test("lets what runs come to its end when it has time to drain, and takes no more", async () => {
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ script, slots: 1, drainMs: 100_000 });
    const id = await bench.submit({ count: 2 });
    await tasks.begun(1);
    const disposed = bench.dispatcher[Symbol.asyncDispose]();
    await settle();
    tasks.end();
    await disposed;
    expect((await bench.store.jobs.get(id))?.job.tasks).toMatchObject({
      succeeded: 1,
      queued: 1,
      running: 0,
    });
    expect(bench.runtime.runs).toBe(1);
  });

  test("puts back what has not ended in time, without counting the attempt", async () => {
    const clock = new ManualClock();
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ clock, after: clock.after, script, slots: 2, drainMs: 5000 });
    const id = await bench.submit({ count: 2 });
    await tasks.begun(2);
    const disposed = bench.dispatcher[Symbol.asyncDispose]();
    await settle();
    expect(bench.runtime.live.size).toBe(2);
    clock.advance(5000);
    await disposed;
    expect(bench.runtime.live.size).toBe(0);
    const { items } = await bench.store.jobs.tasks(id, { limit: 10 });
    expect(items).toMatchObject(Array(2).fill({ state: "queued", attempt: 0, reason: "The gateway ends" }));
  });

  test("takes up again what a killed gateway ran, and removes what it left", async () => {
    const dir = mkdtempSync(join(tmpdir(), "flurry-jobs-"));
    try {
      let blob = "";
      let id = "";
      {
        // Its attempts have begun and never end: the store is closed under them, as a kill does it.
        await using bench = await openBench({ dir, start: false });
        id = await bench.submit({ count: 1 });
        const blocked = { families: new Set<string>(), owners: new Set<string>() };
        const claim = await bench.store.queue.claim(
          { owner: "", priority: 5 },
          { blocked, host: "here", leaseMs: 30_000 },
        );
        blob = `${id}/0/0-${claim!.token}/0`;
        await bench.store.blobs.put(blob, new Blob(["left"]).stream());
        expect(existsSync(join(dir, "blobs", blob))).toBe(true);
      }
      await using bench = await openBench({ dir });
      await bench.ended(id);
      expect(await resultsOf(bench.store, id)).toMatchObject([{ attempt: 1, state: "succeeded" }]);
      expect(existsSync(join(dir, "blobs", blob))).toBe(false);
      expect(await bench.store.queue.abandoned()).toEqual([]);
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });
});
