import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { FlurryError } from "../../errors/errors.ts";
import type { Store } from "../../runtime/jobs/ports.ts";
import type { After } from "../../runtime/jobs/timer.ts";
import { ManualClock } from "../support/jobs-clock.ts";
import { withChanges } from "../support/jobs-held.ts";
import { blobFiles, openBench, resultsOf, settle } from "../support/jobs-setup.ts";
import type { ScriptedTask } from "../support/scripted-runtime.ts";

const SEED = 5;

/** What an attempt does. */
const deed = fc.constantFrom(
  ...(["exits", "fails", "prints", "leaves", "waits", "times out"] as const),
  ...(["dies", "cannot fork", "asks for nonsense"] as const),
);
const plan = fc.record({
  slots: fc.integer({ min: 1, max: 5 }),
  /** Milliseconds by which timers come too early. */
  early: fc.constantFrom(0, 0.6),
  /** Milliseconds that the store takes to tell what there is to do, each time, over and over again. */
  looks: fc.array(fc.constantFrom(0, 0.7, 1000), { minLength: 1, maxLength: 5 }),
  jobs: fc.array(
    fc.record({
      owner: fc.constantFrom("", "a", "b"),
      image: fc.constantFrom("one", "two"),
      priority: fc.integer({ min: 0, max: 9 }),
      maxAttempts: fc.integer({ min: 1, max: 3 }),
      /** Of each task, what its attempts do one after the other; the last one again and again. */
      tasks: fc.array(fc.array(deed, { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 8 }),
    }),
    { minLength: 1, maxLength: 4 },
  ),
  steps: fc.array(
    fc.oneof(
      { weight: 4, arbitrary: fc.record({ do: fc.constant("advance" as const), ms: fc.nat(40_000) }) },
      { weight: 2, arbitrary: fc.record({ do: fc.constant("kill" as const), which: fc.nat() }) },
      { weight: 2, arbitrary: fc.record({ do: fc.constant("release" as const) }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant("cancel" as const), which: fc.nat() }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant("jump" as const), ms: fc.integer() }) },
      { weight: 1, arbitrary: fc.record({ do: fc.constant("retry" as const), which: fc.nat() }) },
    ),
    { maxLength: 30 },
  ),
});
type Plan = typeof plan extends fc.Arbitrary<infer T> ? T : never;

async function play({ slots, jobs, steps, early, looks }: Plan): Promise<void> {
  const clock = new ManualClock();
  const after: After = (ms, callback) => clock.after(ms - early, callback);
  const waiting = new Set<() => void>();
  const planOf = new Map<string, Plan["jobs"][number]>();
  const begun = new Map<string, number>();
  const script = async (task: ScriptedTask) => {
    const key = `${task.job} ${task.index}`;
    const n = begun.get(key) ?? 0;
    begun.set(key, n + 1);
    const deeds = planOf.get(task.job)!.tasks[task.index]!;
    return await perform(task, deeds[Math.min(n, deeds.length - 1)]!, waiting);
  };
  const around = slowlyTelling(clock, looks);
  await using bench = await openBench({ clock, after, around, script, slots, start: false });
  const ids: string[] = [];
  for (const job of jobs) {
    const { owner, image, priority, maxAttempts, tasks } = job;
    const worker = { image, command: ["true"] };
    const id = await bench.submit(
      { count: tasks.length },
      { worker, priority, retry: { maxAttempts } },
      { owner },
    );
    planOf.set(id, job);
    ids.push(id);
  }
  await bench.dispatcher.start();
  for (const step of steps) {
    if (step.do === "advance") clock.advance(step.ms);
    if (step.do === "jump") clock.jump(step.ms);
    if (step.do === "release") release(waiting);
    if (step.do === "kill") bench.runtime.kill([...bench.runtime.live.keys()][step.which % slots] ?? "");
    if (step.do === "cancel") await bench.jobs.cancel(ids[step.which % ids.length]!, "Canceled");
    if (step.do === "retry") await retry(() => bench.jobs.retry(ids[step.which % ids.length]!));
    await settle();
    expect(bench.runtime.live.size).toBeLessThanOrEqual(slots);
  }
  for (let turns = 0; !(await allEnded(bench.store, ids)); turns++) {
    if (turns > 2000) throw new Error("Some job never ends");
    release(waiting);
    clock.advance(30_000);
    await settle();
  }
  const retried = steps.some((step) => step.do === "retry");
  for (const id of ids) await check(bench, id, planOf.get(id)!, retried);
  expect(await bench.store.jobs.load()).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
}

/** Lets time go by while a store is asked what there is to do. */
function slowlyTelling(clock: ManualClock, looks: readonly number[]): (store: Store) => Store {
  let asked = 0;
  return (store) => ({
    ...store,
    queue: withChanges(store.queue, {
      lanes: async (blocked) => {
        const lanes = await store.queue.lanes(blocked);
        clock.advance(looks[asked++ % looks.length]!);
        return lanes;
      },
    }),
  });
}

async function perform(
  task: ScriptedTask,
  what: Plan["jobs"][number]["tasks"][number][number],
  waiting: Set<() => void>,
) {
  switch (what) {
    case "prints":
      await task.print(`${task.index}`);
      return { exitCode: 0 };
    case "leaves":
      await task.leave("out", task.vm);
      return { exitCode: task.index % 2 };
    case "waits":
      await new Promise<void>((resolve) => waiting.add(resolve));
      return { exitCode: 0 };
    case "times out":
      throw new FlurryError("TASK_TIMEOUT", "Too long");
    case "dies":
      await task.leave("out", task.vm);
      throw new FlurryError("CHILD_DIED", "Gone");
    case "cannot fork":
      throw new FlurryError("FORK_FAILED", "No luck");
    case "asks for nonsense":
      throw new FlurryError("BAD_ARGUMENT", "Nonsense");
    default:
      return { exitCode: what === "exits" ? 0 : 7 };
  }
}

function release(waiting: Set<() => void>): void {
  for (const resolve of waiting) resolve();
  waiting.clear();
}

async function retry(work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (error) {
    expect(["JOB_ACTIVE", "BAD_ARGUMENT"]).toContain((error as FlurryError).code);
  }
}

type Bench = Awaited<ReturnType<typeof openBench>>;

async function allEnded(store: Bench["store"], ids: string[]): Promise<boolean> {
  for (const id of ids) {
    const { state } = (await store.jobs.get(id))!.job;
    if (!["succeeded", "failed", "canceled"].includes(state)) return false;
  }
  return true;
}

/** Every task has one result, the counters say the same, and only what results name is kept. */
async function check(
  bench: Bench,
  id: string,
  { tasks }: Plan["jobs"][number],
  retried: boolean,
): Promise<void> {
  const { job } = (await bench.store.jobs.get(id))!;
  const results = await resultsOf(bench.store, id);
  expect(results.map(({ index }) => index)).toEqual(tasks.map((_, index) => index));
  const count = (state: string) => results.filter((result) => result.state === state).length;
  expect(job.tasks).toEqual({
    ...{ total: tasks.length, queued: 0, running: 0, retrying: 0 },
    ...{ succeeded: count("succeeded"), failed: count("failed"), canceled: count("canceled") },
  });
  const { items: artifacts } = await bench.store.jobs.artifacts(id, { limit: 100 });
  expect(artifacts.length).toBe(results.reduce((sum, result) => sum + result.artifacts, 0));
  for (const { task, path } of artifacts) {
    const stored = await bench.store.jobs.artifact(id, task, path);
    const content = await bench.store.blobs.get(stored!.blob);
    expect(await new Response(content).text()).toMatch(/^vm-/);
  }
  // A retry drops results, whose blobs go with the job.
  if (!retried) expect(blobFiles(bench, id)).toHaveLength(artifacts.length);
}

describe("Dispatcher", () => {
  test("gives every task exactly one result, whatever its attempts do and whoever interferes", async () => {
    await fc.assert(fc.asyncProperty(plan, play), { seed: SEED, numRuns: 150 });
  }, 120_000);
});
