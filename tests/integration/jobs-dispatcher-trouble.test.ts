import { describe, expect, test } from "bun:test";
import { rmSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import type { Store } from "../../runtime/jobs/ports.ts";
import { ManualClock } from "../support/jobs-clock.ts";
import { HeldTasks, withChanges } from "../support/jobs-held.ts";
import { openBench, resultsOf, settle } from "../support/jobs-setup.ts";
import type { ScriptedTask } from "../support/scripted-runtime.ts";
import { canMount, smallTmpfs } from "../support/vm.ts";

const bad = { image: "bad", command: ["true"] };

describe("Dispatcher", () => {
  test("sets a family aside that keeps failing, tries it with one task, and restores it", async () => {
    const clock = new ManualClock();
    let works = false;
    const script = ({ spec }: ScriptedTask) => {
      if (spec.image === "bad" && !works) throw new FlurryError("FORK_FAILED", "Cannot fork");
      return { exitCode: 0 };
    };
    await using bench = await openBench({ clock, after: clock.after, script, slots: 1, random: () => 0 });
    const id = await bench.submit({ count: 20 }, { worker: bad });
    while (bench.dispatcher.setAside().length === 0) await settle();
    expect(bench.runtime.runs).toBe(5);
    expect(bench.dispatcher.setAside()).toMatchObject([
      { kind: "worker", label: "image bad", reason: "FORK_FAILED: Cannot fork", failures: 5 },
    ]);
    const { family } = (await bench.store.jobs.get(id))!;
    expect(bench.dispatcher.readiness(family)).toMatchObject({
      state: "failed",
      error: { message: "FORK_FAILED: Cannot fork" },
    });
    // Others go on meanwhile.
    const other = await bench.submit({ count: 3 });
    expect((await bench.ended(other)).job.state).toBe("succeeded");
    expect(bench.runtime.runs).toBe(8);
    expect(await bench.store.hosts.list()).toMatchObject([{ setAside: [{ kind: "worker", id: family }] }]);
    for (const ms of [1000, 2000]) {
      const { runs } = bench.runtime;
      clock.advance(ms - 1);
      await settle();
      expect(bench.runtime.runs).toBe(runs);
      clock.advance(1);
      while (bench.runtime.runs === runs) await settle();
      await bench.until(id, ({ job }) => job.tasks.running === 0);
      await settle();
      expect(bench.runtime.runs).toBe(runs + 1);
    }
    works = true;
    clock.advance(4000);
    while (bench.dispatcher.setAside().length > 0) await settle();
    while (!(await isOver(bench.store, id))) {
      clock.advance(1000);
      await settle();
    }
    expect((await bench.store.jobs.get(id))?.job.tasks).toMatchObject({ succeeded: 20, failed: 0 });
    expect((await bench.store.hosts.list())[0]?.setAside).toEqual([]);
  });

  test("holds nobody else up while a parent is being made, and holds one task only", async () => {
    const preparing = Promise.withResolvers<void>();
    const made = Promise.withResolvers<void>();
    const prepare = (_family: string, { image }: { image?: string | undefined }) => {
      if (image !== "bad") return;
      preparing.resolve();
      return made.promise;
    };
    await using bench = await openBench({ prepare, slots: 1 });
    const slow = await bench.submit({ count: 5 }, { worker: bad, priority: 9 });
    await preparing.promise;
    const quick = await bench.submit({ count: 50 }, { priority: 0 });
    await bench.ended(quick);
    expect((await bench.store.jobs.get(slow))?.job.tasks).toMatchObject({ running: 1, queued: 4 });
    made.resolve();
    expect((await bench.ended(slow)).job.tasks).toMatchObject({ succeeded: 5 });
  });

  test("makes the parents of many families a few at a time, and comes to all of them", async () => {
    let now = 0;
    let most = 0;
    const prepare = async () => {
      most = Math.max(most, ++now);
      await settle();
      now -= 1;
    };
    await using bench = await openBench({ prepare });
    const ids: string[] = [];
    for (let n = 0; n < 40; n++) {
      ids.push(await bench.submit({ count: 2 }, { worker: { image: `image-${n}`, command: ["true"] } }));
    }
    for (const id of ids) expect((await bench.ended(id)).job.tasks).toMatchObject({ succeeded: 2 });
    expect(most).toBe(8);
    expect(await resultsOf(bench.store, ids[39]!)).toMatchObject([{ attempt: 1 }, { attempt: 1 }]);
  });

  test("holds results while the store takes none, claims nothing, and records each once then", async () => {
    const clock = new ManualClock();
    let full = true;
    const refused: string[] = [];
    const around = (store: Store): Store => ({
      ...store,
      queue: withChanges(store.queue, {
        finish: async (token, end) => {
          if (!full) return await store.queue.finish(token, end);
          refused.push(token);
          throw new FlurryError("NO_SPACE", "The disk is full");
        },
      }),
    });
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ clock, after: clock.after, around, script, slots: 3 });
    const id = await bench.submit({ count: 10 });
    await tasks.begun(3);
    tasks.end();
    while (new Set(refused).size < 3) await settle();
    for (let n = 0; n < 120; n++) {
      clock.advance(1000);
      await settle();
    }
    expect(bench.runtime.runs).toBe(3);
    expect(bench.dispatcher.setAside()).toMatchObject([
      { kind: "host", reason: "NO_SPACE: The disk is full" },
    ]);
    expect((await bench.store.jobs.get(id))?.job.tasks).toMatchObject({ running: 3, queued: 7 });
    full = false;
    bench.runtime.script = () => ({ exitCode: 0 });
    clock.advance(5000);
    const { job } = await bench.ended(id);
    expect(job.tasks).toMatchObject({ succeeded: 10 });
    // What was held has not been done again.
    expect(bench.runtime.runs).toBe(10);
    expect(bench.dispatcher.setAside()).toEqual([]);
  });

  test("does not hold a task for good whose end the store refuses for good", async () => {
    const clock = new ManualClock();
    const around = (store: Store): Store => ({
      ...store,
      queue: withChanges(store.queue, {
        finish: async (token, end) => {
          if (end.state !== "failed" || end.result.exitCode !== 66)
            return await store.queue.finish(token, end);
          throw new FlurryError("STORE_FAILED", "Not this one");
        },
      }),
    });
    const script = ({ index }: ScriptedTask) => ({ exitCode: index === 0 ? 66 : 0 });
    await using bench = await openBench({ clock, after: clock.after, around, script, slots: 2 });
    const id = await bench.submit({ count: 5 });
    while (!(await isOver(bench.store, id))) {
      clock.advance(1000);
      await settle();
    }
    const results = await resultsOf(bench.store, id);
    expect(results.map(({ state }) => state)).toEqual(["failed", ...Array(4).fill("succeeded")]);
    expect(results[0]?.error).toMatchObject({ code: "INFRASTRUCTURE_FAILED" });
  }, 60_000);

  test("goes on when a store that answered nothing answers again", async () => {
    const clock = new ManualClock();
    let broken = true;
    const around = (store: Store): Store => ({
      ...store,
      queue: withChanges(store.queue, {
        lanes: async (blocked) => {
          if (broken) throw new FlurryError("STORE_FAILED", "No answer");
          return await store.queue.lanes(blocked);
        },
      }),
    });
    await using bench = await openBench({ clock, after: clock.after, around });
    const id = await bench.submit({ count: 2 });
    while (bench.dispatcher.setAside().length === 0) await settle();
    broken = false;
    clock.advance(1000);
    await bench.ended(id);
    expect(bench.dispatcher.setAside()).toEqual([]);
  });

  test.skipIf(!canMount)(
    "loses no result, and counts none twice, when the disk is full for a while",
    async () => {
      using disk = smallTmpfs(24 * 1024);
      const dir = disk.path;
      const tasks = new HeldTasks();
      const script = async (task: ScriptedTask) => {
        await task.print("x".repeat(20_000));
        return await tasks.script(task);
      };
      await using bench = await openBench({ dir, script, slots: 4 });
      const id = await bench.submit({ count: 40 });
      await tasks.begun(4);
      const { bavail, bsize } = statfsSync(dir);
      writeFileSync(join(dir, "filler"), Buffer.alloc(bavail * bsize));
      tasks.end();
      while (bench.dispatcher.setAside().length === 0) await settle();
      rmSync(join(dir, "filler"));
      let over = false;
      const ended = bench.ended(id).finally(() => {
        over = true;
      });
      while (!over) {
        tasks.end();
        await settle();
      }
      expect((await ended).job.tasks).toMatchObject({ succeeded: 40 });
      const results = await resultsOf(bench.store, id);
      expect(results.map(({ index }) => index)).toEqual(Array.from({ length: 40 }, (_, index) => index));
      expect(results.every(({ stdout }) => stdout.length === 20_000)).toBe(true);
    },
    60_000,
  );
});

async function isOver(store: Store, id: string): Promise<boolean> {
  return ["succeeded", "failed"].includes((await store.jobs.get(id))!.job.state);
}
