import { describe, expect, test } from "bun:test";
import { MAX_TASKS, WorkerSpec } from "../../runtime/api/mod.ts";
import type { JobQuery } from "../../runtime/jobs/ports.ts";
import { rejection } from "./agent-peer.ts";
import { jobChangesConformance } from "./store-conformance-job-changes.ts";
import {
  allTasks,
  claim,
  eventTypes,
  FAILED,
  type JobPorts,
  job,
  mustClaim,
  newJob,
  type OpenJobs,
  result,
  runAll,
  SUCCEEDED,
  submit,
} from "./store-jobs.ts";

const DAY_MS = 24 * 3600 * 1000;

/** What every JobStore does. */
export function jobStoreConformance(name: string, open: OpenJobs): void {
  drafts(name, open);
  idempotency(name, open);
  reads(name, open);
  jobChangesConformance(name, open);
}

function drafts(name: string, open: OpenJobs): void {
  describe(`${name} as a JobStore: drafts`, () => {
    test("nobody sees a draft before its commit, nor one that is given up", async () => {
      await using under = await open();
      const { jobs } = under.port;
      const fields = newJob({ tags: ["tag"] });
      {
        await using draft = await jobs.draft(fields);
        await draft.add(["1", "2"]);
        expect(await jobs.get(fields.id)).toBeUndefined();
        expect((await jobs.list({ limit: 9 })).items).toEqual([]);
        expect((await jobs.list({ tag: "tag", limit: 9 })).items).toEqual([]);
        expect(await jobs.load()).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
        expect(await claim(under.port)).toBeUndefined();
      }
      expect(await jobs.get(fields.id)).toBeUndefined();
      expect(await claim(under.port)).toBeUndefined();
    });

    test("a draft of before a restart is gone", async () => {
      await using under = await open();
      const fields = newJob();
      const draft = await under.port.jobs.draft(fields);
      await draft.add(["1"]);
      await under.reopen();
      expect(await under.port.jobs.get(fields.id)).toBeUndefined();
      expect((await under.port.jobs.list({ limit: 9 })).items).toEqual([]);
      expect(await claim(under.port)).toBeUndefined();
    });

    test("tasks have the inputs in the order in which they were added", async () => {
      await using under = await open();
      const { jobs } = under.port;
      const many = Array.from({ length: 4500 }, (_, at) =>
        at % 3 === 0 ? undefined : JSON.stringify({ at }),
      );
      const fields = newJob();
      await using draft = await jobs.draft(fields);
      await draft.add(many);
      await draft.addCount(2);
      await draft.add(['"last"']);
      const { stored, replayed } = await draft.commit("hash");
      expect(replayed).toBe(false);
      expect(stored.job.tasks).toMatchObject({ total: 4503, queued: 4503 });
      const tasks = await allTasks(under.port, fields.id);
      expect(tasks.map(({ index }) => index)).toEqual(tasks.map((_, at) => at));
      const inputs: (string | undefined)[] = tasks.map(({ input }) => JSON.stringify(input));
      expect(inputs).toEqual([...many, undefined, undefined, '"last"']);
    });

    test("a job has 1 to a million tasks", async () => {
      await using under = await open();
      await using draft = await under.port.jobs.draft(newJob());
      expect((await rejection(draft.commit("hash"))).code).toBe("BAD_ARGUMENT");
      await draft.addCount(MAX_TASKS);
      expect((await rejection(draft.addCount(1))).code).toBe("BAD_ARGUMENT");
      expect((await rejection(draft.add([undefined]))).code).toBe("BAD_ARGUMENT");
      expect((await draft.commit("hash")).stored.job.tasks.total).toBe(MAX_TASKS);
    });

    test("a stored job shows what it was submitted with, but for what is secret", async () => {
      await using under = await open();
      const webhook = {
        url: "https://a.example/",
        secret: "0123456789abcdef",
        events: ["job.failed"],
      } as const;
      const fields = {
        name: "name",
        worker: { name: "w", version: 2 },
        tags: ["b", "a"],
        timeoutMs: 5,
        webhook,
      };
      const { job: shown, family } = await submit(under.port, 1, fields);
      expect(shown).toEqual({
        ...{ id: shown.id, name: "name", state: "queued", reason: shown.reason, priority: 5, timeoutMs: 5 },
        worker: { name: "w", version: 2, image: "base", command: ["true"] },
        ...{ tags: ["b", "a"], retry: shown.retry },
        tasks: { total: 1, queued: 1, running: 0, retrying: 0, succeeded: 0, failed: 0, canceled: 0 },
        webhook: { url: webhook.url, events: ["job.failed"] },
        ...{ createdAt: shown.createdAt, changedAt: shown.changedAt },
      });
      expect(family).toBe("family");
      expect(await job(under.port, shown.id)).toEqual(shown);
    });
  });
}

function idempotency(name: string, open: OpenJobs): void {
  describe(`${name} as a JobStore: idempotency keys`, () => {
    async function submitAs(store: JobPorts, key: string, bodyHash: string, owner = "") {
      await using draft = await store.jobs.draft(newJob({ idempotencyKey: key, owner }));
      await draft.add(["1"]);
      const { stored, replayed } = await draft.commit(bodyHash);
      return { id: stored.job.id, replayed };
    }

    test("the same body gives the earlier job, another one is refused", async () => {
      await using under = await open();
      const { jobs } = under.port;
      expect(await jobs.repeats("", "key")).toBe(false);
      const first = await submitAs(under.port, "key", "body");
      expect(await jobs.repeats("", "key")).toBe(true);
      expect(await submitAs(under.port, "key", "body")).toEqual({ id: first.id, replayed: true });
      expect((await rejection(submitAs(under.port, "key", "other"))).code).toBe("IDEMPOTENCY_MISMATCH");
      expect((await submitAs(under.port, "key", "other", "b")).replayed).toBe(false);
      await under.reopen();
      expect(await submitAs(under.port, "key", "body")).toEqual({ id: first.id, replayed: true });
      expect((await under.port.jobs.list({ limit: 9 })).items).toHaveLength(2);
    });

    test("of drafts at the same time exactly one becomes the job", async () => {
      await using under = await open();
      const results = await Promise.all(Array.from({ length: 8 }, () => submitAs(under.port, "key", "body")));
      expect(results.filter(({ replayed }) => !replayed)).toHaveLength(1);
      expect(new Set(results.map(({ id }) => id)).size).toBe(1);
      expect((await under.port.jobs.list({ limit: 9 })).items).toHaveLength(1);
    });

    test("a key answers for 24 hours, whatever the wall clock does", async () => {
      await using under = await open();
      const first = await submitAs(under.port, "key", "body");
      for (const jump of [365 * DAY_MS, -2 * 365 * DAY_MS]) {
        under.clock.jump(jump);
        expect((await submitAs(under.port, "key", "body")).id).toBe(first.id);
      }
      under.clock.advance(DAY_MS - 1);
      expect((await submitAs(under.port, "key", "body")).id).toBe(first.id);
      under.clock.advance(2);
      expect((await submitAs(under.port, "key", "other")).replayed).toBe(false);
    });

    test("a key answers as long as its job is there", async () => {
      await using under = await open();
      const { id } = await submitAs(under.port, "key", "body");
      await runAll(under.port);
      await under.port.jobs.remove(id);
      expect(await under.port.jobs.repeats("", "key")).toBe(false);
      expect((await submitAs(under.port, "key", "other")).replayed).toBe(false);
    });
  });
}

function reads(name: string, open: OpenJobs): void {
  describe(`${name} as a JobStore: reads`, () => {
    test("list() gives the newest first, in pages, by owner, state and tag", async () => {
      await using under = await open();
      const ids: string[] = [];
      for (const [owner, tag] of [
        ["a", "x"],
        ["b", "x"],
        ["a", "y"],
        ["a", "x"],
        ["b", "y"],
      ] as const) {
        ids.unshift((await submit(under.port, 1, { owner, tags: [tag, "all"] })).job.id);
      }
      const pages = async (query: Partial<JobQuery>) => {
        const found: string[] = [];
        let cursor: string | undefined;
        do {
          const page = await under.port.jobs.list({ ...query, cursor, limit: 2 });
          expect(page.items.length).toBeLessThanOrEqual(2);
          found.push(...page.items.map((stored) => stored.job.id));
          cursor = page.next;
        } while (cursor !== undefined);
        return found.map((id) => ids.indexOf(id));
      };
      await mustClaim(under.port, { lane: { owner: "a", priority: 5 } });
      expect(await pages({})).toEqual([0, 1, 2, 3, 4]);
      expect(await pages({ owner: "a" })).toEqual([1, 2, 4]);
      expect(await pages({ state: "running" })).toEqual([4]);
      expect(await pages({ owner: "a", state: "queued" })).toEqual([1, 2]);
      expect(await pages({ tag: "x" })).toEqual([1, 3, 4]);
      expect(await pages({ tag: "all" })).toEqual([0, 1, 2, 3, 4]);
      expect(await pages({ tag: "x", owner: "a", state: "queued" })).toEqual([1]);
      expect(await pages({ tag: "none" })).toEqual([]);
    });

    test("list() ends a page early whose jobs have long commands", async () => {
      await using under = await open();
      const spec = WorkerSpec.parse({ image: "base", command: Array<string>(30).fill("x".repeat(100_000)) });
      const ids: string[] = [];
      for (let n = 0; n < 5; n++) ids.unshift((await submit(under.port, 1, { spec })).job.id);
      const sizes: number[] = [];
      const found: string[] = [];
      let cursor: string | undefined;
      do {
        const page = await under.port.jobs.list({ cursor, limit: 1000 });
        sizes.push(page.items.length);
        found.push(...page.items.map(({ job }) => job.id));
        cursor = page.next;
      } while (cursor !== undefined);
      expect(sizes).toEqual([2, 2, 1]);
      expect(found).toEqual(ids);
    });

    test.each(["", "x", "bnVsbA", "W10", "WyJhIl0", "WzEsMl0", "W251bGxd", "W10=", "\0"])(
      "a cursor %j that no page gave is refused",
      async (cursor) => {
        await using under = await open();
        const { jobs } = under.port;
        const { job } = await submit(under.port, 1);
        for (const page of [
          jobs.list({ cursor, limit: 1 }),
          jobs.tasks(job.id, { cursor, limit: 1 }),
          jobs.artifacts(job.id, { cursor: cursor === "WzEsMl0" ? "WzFd" : cursor, limit: 1 }),
        ]) {
          expect((await rejection(page)).code).toBe("BAD_ARGUMENT");
        }
      },
    );

    test("tasks() gives pages by index, by state too", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job } = await submit(under.port, 7);
      const first = await mustClaim(under.port);
      await mustClaim(under.port);
      await queue.finish((await mustClaim(under.port)).token, FAILED);
      await queue.finish(first.token, { state: "queued", reason: "lost", delayMs: 60_000 });
      const page = await jobs.tasks(job.id, { limit: 3 });
      expect(page.items.map(({ state }) => state)).toEqual(["queued", "running", "failed"]);
      const rest = await jobs.tasks(job.id, { cursor: page.next, limit: 4 });
      expect(rest.items.map(({ index }) => index)).toEqual([3, 4, 5, 6]);
      expect(rest.next).toBeUndefined();
      const queued = await jobs.tasks(job.id, { state: "queued", limit: 3 });
      expect(queued.items.map(({ index }) => index)).toEqual([0, 3, 4]);
      const more = await jobs.tasks(job.id, { state: "queued", cursor: queued.next, limit: 3 });
      expect(more.items.map(({ index }) => index)).toEqual([5, 6]);
      const failed = await jobs.tasks(job.id, { state: "failed", limit: 3 });
      expect(failed.items.map(({ index }) => index)).toEqual([2]);
      expect(failed.next).toBeUndefined();
    });

    test("a page of tasks ends early when inputs are large", async () => {
      await using under = await open();
      const { job } = await submit(under.port, Array(150).fill(JSON.stringify("x".repeat(60_000))));
      const page = await under.port.jobs.tasks(job.id, { limit: 1000 });
      expect(page.items.length).toBeLessThan(150);
      expect(await allTasks(under.port, job.id)).toHaveLength(150);
    });

    test("nothing is found by an index that the job has not, nor in another job", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: first } = await submit(under.port, 1);
      await submit(under.port, 1);
      const file = { path: "f", size: 0, mode: 0o644, sha256: "00", blob: "b" };
      for (let at = 0; at < 2; at += 1) {
        const end = { state: "succeeded", reason: "ok", result: result({ artifacts: [file] }) } as const;
        await queue.finish((await mustClaim(under.port)).token, end);
      }
      for (const index of [1, -1, 0.5, 2 ** 20, -(2 ** 20), Number.NaN, 2 ** 60]) {
        expect(await jobs.task(first.id, index)).toBeUndefined();
        expect(await jobs.artifact(first.id, index, "f")).toBeUndefined();
        expect((await jobs.artifacts(first.id, { task: index, limit: 9 })).items).toEqual([]);
      }
      expect(await jobs.task("job_unknown", 0)).toBeUndefined();
      expect(await jobs.tasks("job_unknown", { limit: 9 })).toEqual({ items: [] });
      expect(await jobs.events("job_unknown", 0, 9)).toEqual([]);
      const none = await jobs.results("job_unknown", { order: "index", limit: 9 });
      expect(none).toEqual({ items: [], next: 0 });
    });

    test("results() gives them by index up to the first that has not ended, or as they ended", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job } = await submit(under.port, 4);
      const claims = [await mustClaim(under.port), await mustClaim(under.port), await mustClaim(under.port)];
      const read = async (order: "index" | "completion", after?: number, limit = 2) => {
        const page = await jobs.results(job.id, { order, after, limit });
        return { indexes: page.items.map(({ index }) => index), next: page.next };
      };
      const nothing = await read("index");
      expect(nothing.indexes).toEqual([]);
      await queue.finish(claims[2]!.token, SUCCEEDED);
      await queue.finish(claims[0]!.token, FAILED);
      expect((await read("index", nothing.next)).indexes).toEqual([0]);
      const ended = await read("completion");
      expect(ended.indexes).toEqual([2, 0]);
      expect(await read("completion", ended.next)).toEqual({ indexes: [], next: ended.next });
      await queue.finish(claims[1]!.token, SUCCEEDED);
      expect((await read("completion", ended.next)).indexes).toEqual([1]);
      const page = await read("index");
      expect(page.indexes).toEqual([0, 1]);
      expect((await read("index", page.next)).indexes).toEqual([2]);
    });

    test("results() ends a page early where values are large", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const count = 12;
      const { job } = await submit(under.port, count);
      const value = JSON.stringify("x".repeat(1024 * 1024 - 2));
      for (let task = 0; task < count; task += 1) {
        const end = { state: "succeeded", reason: "ok", result: result({ value }) } as const;
        await queue.finish((await mustClaim(under.port)).token, end);
      }
      for (const order of ["index", "completion"] as const) {
        let after: number | undefined;
        for (let seen = 0; seen < count; ) {
          const { items, next } = await jobs.results(job.id, { order, after, limit: 100 });
          expect(items.length).toBeGreaterThan(0);
          expect(items.length).toBeLessThanOrEqual(5);
          expect(items.map(({ index }) => index)).toEqual(items.map((_, at) => seen + at));
          seen += items.length;
          after = next;
        }
      }
    });

    test("artifacts() gives pages by task and path", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job } = await submit(under.port, 3);
      const file = { size: 1, mode: 0o755, sha256: "ab", blob: "k" };
      for (const paths of [["b", "a"], [], ["c", "a/x"]]) {
        const artifacts = paths.map((path) => ({ ...file, path }));
        const end = { state: "succeeded", reason: "ok", result: result({ artifacts }) } as const;
        await queue.finish((await mustClaim(under.port)).token, end);
      }
      const first = await jobs.artifacts(job.id, { limit: 3 });
      expect(first.items.map(({ task, path }) => [task, path])).toEqual([
        [0, "a"],
        [0, "b"],
        [2, "a/x"],
      ]);
      const second = await jobs.artifacts(job.id, { cursor: first.next, limit: 3 });
      expect(second.items.map(({ task, path }) => [task, path])).toEqual([[2, "c"]]);
      expect(second.next).toBeUndefined();
      expect((await jobs.artifacts(job.id, { task: 2, limit: 3 })).items).toHaveLength(2);
    });

    test("events() tells of each change in its order, and goes on after any id", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job } = await submit(under.port, 2);
      const first = await mustClaim(under.port);
      await queue.finish(first.token, { state: "retrying", reason: "failed", delayMs: 0 });
      await runAll(under.port);
      expect(await eventTypes(under.port, job.id)).toEqual([
        ...["job.queued", "job.running", "task.running", "task.retrying"],
        ...["task.running", "task.succeeded", "task.running", "task.succeeded", "job.succeeded"],
      ]);
      const all = await jobs.events(job.id, 0, 100);
      const some = await jobs.events(job.id, 0, 4);
      expect([...some, ...(await jobs.events(job.id, some.at(-1)!.id, 100))]).toEqual(all);
      expect(all[3]).toMatchObject({ type: "task.retrying", task: 0, attempt: 1, reason: "failed" });
    });

    test("load() tells what each key has", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      await submit(under.port, 3, { owner: "a" });
      await submit(under.port, 2, { owner: "b" });
      const { token } = await mustClaim(under.port, { lane: { owner: "a", priority: 5 } });
      expect(await jobs.load("a")).toEqual({ activeJobs: 1, waitingTasks: 2, runningTasks: 1 });
      expect(await jobs.load("b")).toEqual({ activeJobs: 1, waitingTasks: 2, runningTasks: 0 });
      expect(await jobs.load()).toEqual({ activeJobs: 2, waitingTasks: 4, runningTasks: 1 });
      expect(await jobs.load("c")).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
      await queue.finish(token, { state: "retrying", reason: "failed", delayMs: 5 });
      expect(await jobs.load("a")).toEqual({ activeJobs: 1, waitingTasks: 3, runningTasks: 0 });
    });
  });
}
