import { describe, expect, test } from "bun:test";
import { Dispatcher } from "../../runtime/jobs/dispatcher.ts";
import { HeldTasks } from "../support/jobs-held.ts";
import { openBench, settle } from "../support/jobs-setup.ts";
import type { ScriptedTask } from "../support/scripted-runtime.ts";

describe("Dispatcher", () => {
  test("keeps to the running tasks that a key may have, and gives the rest to others", async () => {
    const tasks = new HeldTasks();
    const owners = new Map<string, string>();
    await using bench = await openBench({ script: tasks.script, slots: 10 });
    const created = await bench.store.keys.create({
      ...{ id: "a", hash: "0".repeat(64), name: "a", scopes: ["submit"] },
      limits: { runningTasks: 2 },
    });
    const limited = await bench.submit({ count: 6 }, {}, { owner: created.id });
    await tasks.begun(2);
    await settle();
    expect(bench.runtime.live.size).toBe(2);
    owners.set(await bench.submit({ count: 5 }, {}, { owner: "b" }), "b");
    await tasks.begun(7);
    await settle();
    expect(bench.runtime.live.size).toBe(7);
    for (let n = 0; n < 3; n++) {
      const left = [...bench.runtime.live.values()].filter(({ task }) => task.job === limited);
      expect(left).toHaveLength(2);
      tasks.end();
      if (n < 2) await tasks.begun(2);
      await settle();
    }
    expect((await bench.ended(limited)).job.tasks).toMatchObject({ succeeded: 6 });
  });

  test("gives owners equal shares whatever the size of their jobs, and goes by priority inside", async () => {
    const order: string[] = [];
    const names = new Map<string, string>();
    const script = ({ job }: ScriptedTask) => {
      order.push(names.get(job)!);
      return { exitCode: 0 };
    };
    await using bench = await openBench({ script, slots: 1, start: false });
    const submit = async (name: string, owner: string, count: number, priority: number) => {
      const id = await bench.submit({ count }, { priority }, { owner });
      names.set(id, name);
      return id;
    };
    const ids = [
      await submit("large", "a", 500, 5),
      await submit("small", "b", 20, 5),
      await submit("low", "c", 100, 3),
      await submit("high", "c", 100, 5),
    ];
    await bench.dispatcher.start();
    for (const id of ids) await bench.ended(id);
    const first = order.slice(0, 60);
    const count = (name: string, among: string[]) => among.filter((one) => one === name).length;
    expect([count("large", first), count("small", first)]).toEqual([20, 20]);
    expect([count("high", first), count("low", first)]).toEqual([16, 4]);
  });

  test("holds a window of a large job, not all of it", async () => {
    const grown = async (count: number) => {
      await using bench = await openBench({ slots: 4, start: false });
      let most = 0;
      bench.runtime.script = () => {
        most = Math.max(most, bench.dispatcher.running);
        return { exitCode: 0 };
      };
      const id = await bench.submit({ count });
      const before = process.memoryUsage.rss();
      await bench.dispatcher.start();
      await bench.ended(id);
      expect(most).toBeLessThanOrEqual(4);
      return process.memoryUsage.rss() - before;
    };
    await grown(50);
    const small = await grown(50);
    const large = await grown(5000);
    // A window of 1 KiB for each further task would already be more.
    expect(large - small).toBeLessThan(64 * 1024 * 1024);
  }, 120_000);

  test("does not take what another dispatcher of the same store has taken", async () => {
    const tasks = new HeldTasks();
    await using bench = await openBench({ script: tasks.script, slots: 2 });
    const { store, runtime } = bench;
    await using second = new Dispatcher({
      ...{ store, runtime, hostId: "second" },
      clock: { now: () => Date.now(), monotonic: () => performance.now() },
    });
    await second.start();
    const id = await bench.submit({ count: 4 });
    await tasks.begun(4);
    expect(new Set([...bench.runtime.live.values()].map(({ task }) => task.index)).size).toBe(4);
    tasks.end();
    expect((await bench.ended(id)).job.tasks).toMatchObject({ succeeded: 4 });
    expect(bench.runtime.runs).toBe(4);
  });
});
