import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import fc from "fast-check";
import type { AttemptEnd, Store } from "../../runtime/jobs/ports.ts";
import { openStore } from "../../runtime/store/open.ts";
import { rejection } from "../support/agent-peer.ts";
import { ManualClock } from "../support/jobs-clock.ts";
import { claim, FAILED, newJob, SUCCEEDED, submit } from "../support/store-jobs.ts";
import { countsOf, hasEnded, type ModelJob, StoreModel } from "../support/store-model.ts";
import { recount } from "../support/store-recount.ts";

const SEED = 20090402;
const YEAR_MS = 365 * 24 * 3600 * 1000;
const LEASE_MS = 1000;

const which = fc.nat();
const delayMs = fc.constantFrom(0, 0, 300, 2000);
const infrastructure = fc.boolean();
const end = fc.oneof(
  fc.record({ state: fc.constantFrom("succeeded" as const, "failed" as const, "canceled" as const) }),
  fc.record({ state: fc.constant("retrying" as const), delayMs, infrastructure: fc.constant(false) }),
  fc.record({ state: fc.constant("queued" as const), delayMs, infrastructure }),
);
type End = typeof end extends fc.Arbitrary<infer T> ? T : never;

const step = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("submit" as const), count: fc.integer({ min: 1, max: 5 }) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("give a draft up" as const) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant("claim" as const) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant("finish" as const), which, end }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("finish again" as const), which, end }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("renew" as const), which }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("expire" as const) }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("wait" as const), ms: fc.constantFrom(100, 400, 1000) }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant("jump" as const), ms: fc.constantFrom(-YEAR_MS, YEAR_MS) }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("cancel" as const), which }) },
  {
    weight: 2,
    arbitrary: fc.record({ do: fc.constant("retry" as const), which, one: fc.option(fc.nat(6)) }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("remove" as const), which }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("reopen" as const) }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

test("the store does what the model does, whatever happens in whatever order", async () => {
  const steps = fc.array(step, { maxLength: 80, size: "max" });
  await fc.assert(fc.asyncProperty(steps, check), { seed: SEED, numRuns: 60 });
}, 300_000);

async function check(steps: readonly Step[]): Promise<void> {
  // In memory: it is not the disk that is tried here.
  using directory = new DisposableStack();
  const dir = directory.adopt(mkdtempSync("/dev/shm/flurry-t-"), (path) =>
    rmSync(path, { recursive: true, force: true }),
  );
  const clock = new ManualClock();
  const model = new StoreModel();
  let store = await openStore({ dir, clock });
  try {
    for (const next of steps) {
      if (next.do === "reopen") {
        await store[Symbol.asyncDispose]();
        expect(recount(dir)).toEqual([]);
        store = await openStore({ dir, clock });
        model.reopen(clock.monotonic());
      } else {
        await take(next, store, model, clock);
      }
      await compare(store, model);
    }
  } finally {
    await store[Symbol.asyncDispose]();
  }
  expect(recount(dir)).toEqual([]);
}

async function take(step: Step, store: Store, model: StoreModel, clock: ManualClock): Promise<void> {
  const { jobs, queue } = store;
  const now = clock.monotonic();
  const job = "which" in step ? model.jobs[step.which % model.jobs.length] : undefined;
  const held = model.held();
  switch (step.do) {
    case "submit":
      return model.submit((await submit(store, step.count)).job.id, step.count);
    case "give a draft up": {
      await using draft = await jobs.draft(newJob());
      return await draft.add(["1"]);
    }
    case "claim":
      return await claimNext(store, model, now);
    case "finish": {
      const lease = held[step.which % held.length];
      if (!lease) return;
      expect(await queue.finish(lease.token, endOf(step.end))).toBe("recorded");
      return model.finish(lease.job, lease.task, step.end, now);
    }
    case "finish again":
      expect(
        await queue.finish(model.stale[step.which % model.stale.length] ?? "none", endOf(step.end)),
      ).toBe("stale");
      return;
    case "renew": {
      const lease = held[step.which % held.length];
      const lost = await queue.renew(lease ? [lease.token, "none"] : ["none"], LEASE_MS);
      expect(lost).toEqual(["none"]);
      if (lease) lease.task.leaseUntil = now + LEASE_MS;
      return;
    }
    case "expire":
      expect(new Set(await queue.expire())).toEqual(new Set(model.expire(now)));
      return;
    case "wait":
      return clock.advance(step.ms);
    case "jump":
      return clock.jump(step.ms);
    case "cancel":
      if (job) await jobs.cancel(job.id, "asked");
      return job && model.cancel(job);
    case "retry":
      return job && (await retry(store, model, job, step.one));
    case "remove":
      if (!job) return;
      if (!hasEnded(job)) return expect((await rejection(jobs.remove(job.id))).code).toBe("JOB_ACTIVE");
      await jobs.remove(job.id);
      return model.remove(job);
  }
}

async function claimNext(store: Store, model: StoreModel, now: number): Promise<void> {
  const expected = model.next(now);
  const claimed = await claim(store, { leaseMs: LEASE_MS });
  expect(claimed && [claimed.job, claimed.index]).toEqual(expected && [expected.job.id, expected.index]);
  if (!claimed || !expected) return;
  const task = model.claim(expected.job, expected.index, claimed.token, now + LEASE_MS);
  expect([claimed.attempt, claimed.infrastructureFailures]).toEqual([task.attempt, task.failures]);
}

async function retry(store: Store, model: StoreModel, job: ModelJob, one: number | null): Promise<void> {
  const outcome = store.jobs.retry(job.id, one ?? undefined);
  if (!hasEnded(job)) return expect((await rejection(outcome)).code).toBe("JOB_ACTIVE");
  if (one !== null && one >= job.tasks.length) {
    return expect((await rejection(outcome)).code).toBe("TASK_NOT_FOUND");
  }
  const done = model.retry(job, one === null ? [...job.tasks.keys()] : [one]);
  if (done) await outcome;
  else expect((await rejection(outcome)).code).toBe("BAD_ARGUMENT");
}

function endOf(of: End): AttemptEnd {
  if (!("delayMs" in of)) {
    if (of.state === "canceled") return { state: "canceled", reason: "asked" };
    return of.state === "failed" ? FAILED : SUCCEEDED;
  }
  const error = { code: "CHILD_DIED", message: "The child died" };
  const { state, delayMs, infrastructure } = of;
  return {
    state,
    reason: "again",
    delayMs,
    error: infrastructure || state === "retrying" ? error : undefined,
  };
}

async function compare({ jobs }: Store, model: StoreModel): Promise<void> {
  const { items } = await jobs.list({ limit: 1000 });
  expect(items.map((stored) => [stored.job.id, stored.job.state, stored.job.tasks])).toEqual(
    model.jobs.toReversed().map((job) => [job.id, job.state, countsOf(job)]),
  );
  for (const job of model.jobs) {
    const tasks = (await jobs.tasks(job.id, { limit: 1000 })).items;
    expect(tasks.map(({ state, attempt }) => [state, attempt])).toEqual(
      job.tasks.map(({ state, attempt }) => [state, attempt]),
    );
    // Each task that has ended has exactly one result.
    const results = (await jobs.results(job.id, { order: "completion", limit: 1000 })).items;
    const ended = [...job.tasks.entries()].filter(([, { state }]) =>
      /^(succeeded|failed|canceled)$/.test(state),
    );
    expect(results.map(({ index }) => index).sort((a, b) => a - b)).toEqual(ended.map(([index]) => index));
  }
  const counts = model.jobs.map(countsOf);
  expect(await jobs.load()).toEqual({
    activeJobs: model.jobs.filter((job) => !hasEnded(job)).length,
    waitingTasks: counts.reduce((sum, { queued, retrying }) => sum + queued + retrying, 0),
    runningTasks: counts.reduce((sum, { running }) => sum + running, 0),
  });
}
