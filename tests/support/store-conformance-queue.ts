import { describe, expect, test } from "bun:test";
import { Retry, WorkerSpec } from "../../runtime/api/mod.ts";
import {
  claim,
  eventTypes,
  FAILED,
  job,
  LANE,
  mustClaim,
  NOTHING_BLOCKED,
  type OpenJobs,
  REQUEUED,
  result,
  runAll,
  SUCCEEDED,
  submit,
} from "./store-jobs.ts";

const YEAR_MS = 365 * 24 * 3600 * 1000;

/** What every Queue does. */
export function queueConformance(name: string, open: OpenJobs): void {
  describe(`${name} as a Queue`, () => {
    test("claim() gives all that a task needs", async () => {
      await using under = await open();
      const spec = WorkerSpec.parse({ image: "base", command: ["sh"], files: [{ path: "/f", text: "x" }] });
      const fields = {
        owner: "key",
        priority: 7,
        spec,
        family: "the family",
        worker: { name: "render", version: 3 },
        env: { A: "1" },
        retry: Retry.parse({ maxAttempts: 3 }),
        timeoutMs: 500,
        traceparent: "00-1-2-01",
      };
      const { job } = await submit(under.port, ['{"a":1}', undefined], fields);
      const lane = { owner: "key", priority: 7 };
      const first = await mustClaim(under.port, { lane });
      const { token, ...rest } = first;
      expect(token).toMatch(/^[A-Za-z0-9_.-]{16,}$/);
      const { owner, family, worker, env, retry, timeoutMs, traceparent } = fields;
      expect(rest).toEqual({
        ...{ job: job.id, index: 0, count: 2, attempt: 1, infrastructureFailures: 0, input: '{"a":1}' },
        ...{ owner, family, worker, env, retry, timeoutMs, traceparent, spec, waitedMs: 0 },
      });
      const second = await mustClaim(under.port, { lane });
      expect([second.index, second.input]).toEqual([1, undefined]);
    });

    test("claim() serves a lane in the order of submission, lanes() tells which there are", async () => {
      await using under = await open();
      const first = await submit(under.port, 2);
      const second = await submit(under.port, 1);
      await submit(under.port, 1, { owner: "b", priority: 0 });
      await submit(under.port, 1, { owner: "b", priority: 9 });
      const lanes = await under.port.queue.lanes(NOTHING_BLOCKED);
      expect(lanes).toHaveLength(3);
      for (const lane of [LANE, { owner: "b", priority: 0 }, { owner: "b", priority: 9 }]) {
        expect(lanes).toContainEqual(lane);
      }
      const claims = await runAll(under.port);
      expect(claims.map(({ job, index }) => [job, index])).toEqual([
        [first.job.id, 0],
        [first.job.id, 1],
        [second.job.id, 0],
      ]);
      expect(await under.port.queue.lanes(NOTHING_BLOCKED)).toHaveLength(2);
    });

    test("what is blocked is neither in lanes() nor claimed", async () => {
      await using under = await open();
      const { queue } = under.port;
      await submit(under.port, 1, { family: "a" });
      const free = await submit(under.port, 1, { family: "b" });
      await submit(under.port, 1, { owner: "key", family: "b" });
      const families = { families: new Set(["a"]), owners: new Set<string>() };
      const owners = { families: new Set<string>(), owners: new Set(["key"]) };
      const both = { families: new Set(["a", "b"]), owners: new Set<string>() };
      expect(await queue.lanes(families)).toHaveLength(2);
      expect(await queue.lanes(owners)).toEqual([LANE]);
      expect(await queue.lanes(both)).toEqual([]);
      expect(await claim(under.port, { blocked: both })).toBeUndefined();
      expect((await claim(under.port, { blocked: families }))?.job).toBe(free.job.id);
      const lane = { owner: "key", priority: 5 };
      expect(await claim(under.port, { lane, blocked: owners })).toBeUndefined();
    });

    test("claim() gives no task twice when many ask at the same time", async () => {
      await using under = await open();
      await submit(under.port, 20);
      const claims = await Promise.all(Array.from({ length: 30 }, () => claim(under.port)));
      const indexes = claims.flatMap((claimed) => (claimed ? [claimed.index] : []));
      expect(indexes.sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, at) => at));
    });

    test("finish() records once; later it is stale and changes nothing", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 1);
      const { token } = await mustClaim(under.port);
      const ends = await Promise.all([queue.finish(token, SUCCEEDED), queue.finish(token, FAILED)]);
      expect(ends).toEqual(["recorded", "stale"]);
      expect(await queue.finish(token, FAILED)).toBe("stale");
      expect(await queue.finish("unknown", FAILED)).toBe("stale");
      expect((await job(under.port, submitted.id)).state).toBe("succeeded");
      expect((await jobs.results(submitted.id, { order: "completion", limit: 9 })).items).toHaveLength(1);
    });

    test("an attempt counts unless it ends as queued; only an error is the infrastructure's failure", async () => {
      await using under = await open();
      const { queue } = under.port;
      await submit(under.port, 1);
      const error = { code: "CHILD_DIED", message: "The child died" };
      const seen: [number, number][] = [];
      for (const end of [
        REQUEUED,
        { state: "queued", reason: "lost", error, delayMs: 0 },
        { state: "retrying", reason: "failed", delayMs: 0 },
        { state: "queued", reason: "lost", error, delayMs: 0 },
        SUCCEEDED,
      ] as const) {
        const { token, attempt, infrastructureFailures } = await mustClaim(under.port);
        seen.push([attempt, infrastructureFailures]);
        await queue.finish(token, end);
      }
      expect(seen).toEqual([
        [1, 0],
        [1, 0],
        [1, 1],
        [2, 1],
        [2, 2],
      ]);
    });

    test("a claim tells how long its task was queued, but not of one that a failure has delayed", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 2);
      const waits: (number | undefined)[] = [];
      const take = async () => {
        const { token, waitedMs } = await mustClaim(under.port);
        waits.push(waitedMs);
        return token;
      };
      under.clock.advance(100);
      await queue.finish(await take(), { state: "retrying", reason: "failed", delayMs: 0 });
      await queue.finish(await take(), { state: "queued", reason: "The gateway ends", delayMs: 0 });
      under.clock.advance(20);
      await queue.finish(await take(), SUCCEEDED);
      await queue.finish(await take(), { state: "queued", reason: "Others first", delayMs: 0 });
      under.clock.advance(3);
      await queue.finish(await take(), FAILED);
      await jobs.retry(submitted.id);
      under.clock.jump(-YEAR_MS);
      await queue.finish(await take(), SUCCEEDED);
      expect(waits).toEqual([100, undefined, 20, 120, 3, 0]);
    });

    test("a task that waits is claimed when its delay is over, whatever the wall clock does", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 1);
      const { token } = await mustClaim(under.port);
      const error = { code: "TASK_FAILED", message: "Exited with 1" };
      await queue.finish(token, { state: "retrying", reason: "Exited with 1", error, delayMs: 500 });
      expect(await jobs.task(submitted.id, 0)).toMatchObject({ state: "retrying", attempt: 1, error });
      expect(await queue.nextMs()).toBe(500);
      for (const jump of [YEAR_MS, -2 * YEAR_MS]) {
        under.clock.jump(jump);
        expect(await claim(under.port)).toBeUndefined();
        expect(await queue.lanes(NOTHING_BLOCKED)).toEqual([]);
      }
      under.clock.advance(499);
      expect(await claim(under.port)).toBeUndefined();
      under.clock.advance(1);
      expect(await queue.nextMs()).toBe(0);
      expect(await queue.lanes(NOTHING_BLOCKED)).toEqual([LANE]);
      expect((await mustClaim(under.port)).attempt).toBe(2);
    });

    test("a lease that runs out is void, one that is renewed holds; the wall clock has no say", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 2);
      const lost = await mustClaim(under.port, { leaseMs: 1000 });
      const kept = await mustClaim(under.port, { leaseMs: 1000 });
      under.clock.jump(YEAR_MS);
      expect(await queue.expire()).toEqual([]);
      under.clock.advance(600);
      expect(await queue.renew([kept.token], 1000)).toEqual([]);
      under.clock.advance(400);
      expect(await queue.nextMs()).toBe(0);
      expect(await queue.expire()).toEqual([lost.token]);
      expect(await queue.expire()).toEqual([]);
      expect(await queue.renew([lost.token, kept.token, "unknown"], 1000)).toEqual([lost.token, "unknown"]);
      expect(await queue.finish(lost.token, SUCCEEDED)).toBe("stale");
      expect(await jobs.task(submitted.id, lost.index)).toMatchObject({ state: "queued", attempt: 0 });
      expect(await queue.finish(kept.token, SUCCEEDED)).toBe("recorded");
      const again = await mustClaim(under.port);
      expect(again).toMatchObject({ index: lost.index, attempt: 1, infrastructureFailures: 1 });
    });

    test("after a restart leases are void and waits are over, and no attempt is counted for it", async () => {
      await using under = await open();
      const { job: submitted } = await submit(under.port, 3);
      const running = await mustClaim(under.port);
      const waiting = await mustClaim(under.port);
      await under.port.queue.finish(waiting.token, {
        state: "retrying",
        reason: "failed",
        delayMs: 3_600_000,
      });
      await under.reopen();
      const { jobs, queue } = under.port;
      expect(await queue.renew([running.token], 1000)).toEqual([running.token]);
      expect(await queue.finish(running.token, SUCCEEDED)).toBe("stale");
      expect(await queue.abandoned()).toEqual([{ job: submitted.id, index: 0, token: running.token }]);
      await queue.cleared([running.token]);
      expect(await queue.abandoned()).toEqual([]);
      expect(await queue.nextMs()).toBe(0);
      expect((await jobs.events(submitted.id, 0, 100)).at(-1)).toMatchObject({
        ...{ type: "task.queued", task: 0, reason: "The gateway was restarted" },
      });
      const claims = await runAll(under.port);
      expect(claims.map(({ index, attempt }) => [index, attempt])).toEqual([
        [0, 1],
        [1, 2],
        [2, 1],
      ]);
      expect(await job(under.port, submitted.id)).toMatchObject({
        state: "succeeded",
        tasks: { total: 3, succeeded: 3 },
      });
      expect(await queue.nextMs()).toBeUndefined();
    });

    test("started() names the child", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 1);
      const { token } = await mustClaim(under.port);
      await queue.started(token, "vm-1");
      expect((await jobs.task(submitted.id, 0))?.vm).toBe("vm-1");
      await queue.finish(token, SUCCEEDED);
      await queue.started(token, "vm-2");
      expect((await jobs.task(submitted.id, 0))?.vm).toBe("vm-1");
      expect(
        (await jobs.events(submitted.id, 0, 100)).find(({ type }) => type === "task.succeeded")?.vm,
      ).toBe("vm-1");
    });

    test("onReady() calls back when a task may be claimed", async () => {
      await using under = await open();
      const { queue } = under.port;
      let calls = 0;
      const listening = queue.onReady(() => {
        calls += 1;
      });
      const called = () => {
        const before = calls;
        calls = 0;
        return before > 0;
      };
      await submit(under.port, 1);
      expect(called()).toBe(true);
      await queue.finish((await mustClaim(under.port)).token, { ...REQUEUED, delayMs: 10 });
      expect(called()).toBe(false);
      under.clock.advance(10);
      await queue.finish((await mustClaim(under.port)).token, REQUEUED);
      expect(called()).toBe(true);
      await mustClaim(under.port, { leaseMs: 10 });
      under.clock.advance(10);
      await queue.expire();
      expect(called()).toBe(true);
      listening[Symbol.dispose]();
      await submit(under.port, 1);
      expect(called()).toBe(false);
    });

    test.each([
      [["succeeded", "succeeded"], "succeeded"],
      [["succeeded", "failed"], "failed"],
      [["failed", "canceled"], "failed"],
      [["succeeded", "canceled"], "canceled"],
    ] as const)("a job whose tasks end as %j has %s", async (states, expected) => {
      await using under = await open();
      const { job: submitted } = await submit(under.port, states.length);
      await runAll(under.port, ({ index }) => {
        const state = states[index]!;
        return state === "canceled" ? { state, reason: "asked" } : state === "failed" ? FAILED : SUCCEEDED;
      });
      const ended = await job(under.port, submitted.id);
      expect(ended.state).toBe(expected);
      expect(ended.endedAt).toBeDefined();
      expect((await eventTypes(under.port, submitted.id)).at(-1)).toBe(`job.${expected}`);
    });

    test("finish() stores what the attempt left behind", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 1);
      const { token } = await mustClaim(under.port);
      const file = { path: "a/b", size: 3, mode: 0o644, sha256: "00" };
      const left = result({
        exitCode: 0,
        stdout: "out",
        stdoutTruncated: true,
        artifacts: [{ ...file, blob: "k" }],
      });
      await queue.finish(token, { state: "succeeded", reason: "ok", result: left });
      expect((await jobs.results(submitted.id, { order: "index", limit: 9 })).items).toMatchObject([
        {
          ...{ index: 0, state: "succeeded", attempt: 1, exitCode: 0, stdout: "out" },
          stdoutTruncated: true,
          artifacts: 1,
        },
      ]);
      expect((await jobs.artifacts(submitted.id, { limit: 9 })).items).toEqual([{ task: 0, ...file }]);
      expect(await jobs.artifact(submitted.id, 0, "a/b")).toEqual({
        artifact: { task: 0, ...file },
        blob: "k",
      });
      expect(await jobs.artifact(submitted.id, 0, "a")).toBeUndefined();
    });
  });
}
