import { describe, expect, test } from "bun:test";
import type { JobState } from "../../runtime/api/mod.ts";
import { rejection } from "./agent-peer.ts";
import {
  allTasks,
  claim,
  eventTypes,
  FAILED,
  job,
  mustClaim,
  type OpenJobs,
  result,
  runAll,
  SUCCEEDED,
  submit,
  until,
} from "./store-jobs.ts";

/** More tasks than any step changes at once. */
const MANY = 5000;

/** What every JobStore does when jobs are canceled, tried again and removed, and whom it tells. */
export function jobChangesConformance(name: string, open: OpenJobs): void {
  describe(`${name} as a JobStore: changes`, () => {
    test("cancel() ends a job that waits at once", async () => {
      await using under = await open();
      const { jobs } = under.port;
      const { job: submitted } = await submit(under.port, 3);
      const { job: canceled } = await jobs.cancel(submitted.id, "not needed");
      expect(canceled).toMatchObject({
        ...{ state: "canceled", reason: "not needed" },
        tasks: { total: 3, queued: 0, canceled: 3 },
      });
      expect(await claim(under.port)).toBeUndefined();
      expect(await eventTypes(under.port, submitted.id)).toEqual([
        ...["job.queued", "job.canceling", "task.canceled", "task.canceled", "task.canceled", "job.canceled"],
      ]);
      const { items } = await jobs.results(submitted.id, { order: "index", limit: 9 });
      expect(items.map(({ state }) => state)).toEqual(["canceled", "canceled", "canceled"]);
      expect((await jobs.cancel(submitted.id, "again")).job).toEqual(canceled);
      expect(await jobs.load()).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
    });

    test("cancel() of a job that runs waits for what runs, and nothing of it waits again", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, 5);
      const [done, lost, aborted] = [
        await mustClaim(under.port),
        await mustClaim(under.port),
        await mustClaim(under.port),
      ];
      const later = await mustClaim(under.port);
      await queue.finish(later.token, { state: "retrying", reason: "failed", delayMs: 60_000 });
      expect((await jobs.cancel(submitted.id, "enough")).job).toMatchObject({
        ...{ state: "canceling", reason: "enough" },
        tasks: { queued: 0, retrying: 0, running: 3, canceled: 2 },
      });
      expect(await claim(under.port)).toBeUndefined();
      await queue.finish(done.token, SUCCEEDED);
      await queue.finish(lost.token, { state: "queued", reason: "lost", delayMs: 0 });
      expect((await job(under.port, submitted.id)).state).toBe("canceling");
      await queue.finish(aborted.token, { state: "canceled", reason: "enough" });
      expect(await job(under.port, submitted.id)).toMatchObject({
        ...{ state: "canceled", reason: "enough" },
        tasks: { succeeded: 1, canceled: 4 },
      });
      expect(await queue.nextMs()).toBeUndefined();
    });

    test("cancel() of many tasks goes on after a restart", async () => {
      await using under = await open();
      const { job: submitted } = await submit(under.port, MANY);
      await mustClaim(under.port);
      expect((await under.port.jobs.cancel(submitted.id, "enough")).job.state).toBe("canceling");
      expect(await claim(under.port)).toBeUndefined();
      await under.reopen();
      const ended = await until(under.port, submitted.id, (stored) => stored.job.state === "canceled");
      expect(ended.job.tasks).toMatchObject({ canceled: MANY, running: 0, queued: 0 });
      expect(await under.port.jobs.load()).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
    });

    test("a job that has ended is not canceled; one that is not there is not found", async () => {
      await using under = await open();
      const { jobs } = under.port;
      const { job: submitted } = await submit(under.port, 1);
      await runAll(under.port);
      expect((await jobs.cancel(submitted.id, "late")).job.state).toBe("succeeded");
      for (const change of [jobs.cancel("job_x", ""), jobs.retry("job_x"), jobs.remove("job_x")]) {
        expect((await rejection(change)).code).toBe("JOB_NOT_FOUND");
      }
    });

    test("retry() tries what failed or was canceled again, with all attempts", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const { job: submitted } = await submit(under.port, ["0", "1", "2"]);
      expect((await rejection(jobs.retry(submitted.id))).code).toBe("JOB_ACTIVE");
      const file = { path: "f", size: 0, mode: 0o644, sha256: "00", blob: "b" };
      const first = await mustClaim(under.port);
      const left = result({ exitCode: 1, stdout: "first", artifacts: [file] });
      await queue.finish(first.token, { state: "failed", reason: "failed", result: left });
      await runAll(under.port, ({ index }) =>
        index === 1 ? SUCCEEDED : { state: "canceled", reason: "asked" },
      );
      const before = await jobs.results(submitted.id, { order: "completion", limit: 9 });
      expect(before.items.map(({ index, ended }) => [index, ended])).toEqual([
        [0, 1],
        [1, 2],
        [2, 3],
      ]);
      const seen = before.next;
      let told = 0;
      using _listener = queue.onAbandoned(() => {
        told += 1;
      });
      const again = await jobs.retry(submitted.id);
      // Blobs are nobody's from then on, and only the first task had left some.
      expect(told).toBe(1);
      expect(await queue.abandoned()).toEqual([{ job: submitted.id, index: 0, token: first.token }]);
      expect(again.job).toMatchObject({
        state: "queued",
        tasks: { queued: 2, succeeded: 1, failed: 0, canceled: 0 },
      });
      expect(again.job.endedAt).toBeUndefined();
      expect((await jobs.artifacts(submitted.id, { limit: 9 })).items).toEqual([]);
      const claims = await runAll(under.port);
      expect(claims.map(({ index, attempt, input }) => [index, attempt, input])).toEqual([
        [0, 1, "0"],
        [2, 1, "2"],
      ]);
      expect((await job(under.port, submitted.id)).state).toBe("succeeded");
      const more = await jobs.results(submitted.id, { order: "completion", after: seen, limit: 9 });
      expect(more.items.map(({ index, ended, stdout }) => [index, ended, stdout])).toEqual([
        [0, 4, ""],
        [2, 5, ""],
      ]);
      expect((await rejection(jobs.retry(submitted.id))).code).toBe("BAD_ARGUMENT");
    });

    test("retry() of one task leaves the others", async () => {
      await using under = await open();
      const { jobs } = under.port;
      const { job: submitted } = await submit(under.port, 3);
      await runAll(under.port, ({ index }) => (index === 0 ? SUCCEEDED : FAILED));
      expect((await rejection(jobs.retry(submitted.id, 0))).code).toBe("BAD_ARGUMENT");
      expect((await rejection(jobs.retry(submitted.id, 3))).code).toBe("TASK_NOT_FOUND");
      expect((await jobs.retry(submitted.id, 2)).job.tasks).toMatchObject({
        queued: 1,
        failed: 1,
        succeeded: 1,
      });
      expect((await runAll(under.port)).map(({ index }) => index)).toEqual([2]);
      expect(await job(under.port, submitted.id)).toMatchObject({
        ...{ state: "failed", tasks: { succeeded: 2, failed: 1 } },
      });
    });

    test("retry() of many tasks goes on after a restart, and takes no task twice", async () => {
      await using under = await open();
      const { job: submitted } = await submit(under.port, MANY);
      await under.port.jobs.cancel(submitted.id, "enough");
      await until(under.port, submitted.id, (stored) => stored.job.state === "canceled");
      await under.port.jobs.retry(submitted.id);
      const failed = await mustClaim(under.port);
      await under.port.queue.finish(failed.token, FAILED);
      await under.reopen();
      const { tasks } = (await until(under.port, submitted.id, ({ job }) => job.tasks.canceled === 0)).job;
      expect(tasks).toMatchObject({ queued: MANY - 1, failed: 1 });
      expect(
        (await allTasks(under.port, submitted.id)).filter(({ state }) => state === "queued"),
      ).toHaveLength(MANY - 1);
    });

    test("remove() takes a job away from all, and names it until it is purged", async () => {
      await using under = await open();
      const { jobs } = under.port;
      const { job: submitted } = await submit(under.port, MANY, { tags: ["tag"] });
      const { job: other } = await submit(under.port, 1, { tags: ["tag"] });
      expect((await rejection(jobs.remove(submitted.id))).code).toBe("JOB_ACTIVE");
      await jobs.cancel(submitted.id, "enough");
      await until(under.port, submitted.id, (stored) => stored.job.state === "canceled");
      await jobs.remove(submitted.id);
      for (const _restart of [false, true]) {
        const { jobs } = under.port;
        expect(await jobs.get(submitted.id)).toBeUndefined();
        for (const query of [{}, { tag: "tag" }, { state: "canceled" as const }, { owner: "" }]) {
          const { items } = await jobs.list({ ...query, limit: 9 });
          expect(items.map((stored) => stored.job.id)).toEqual("state" in query ? [] : [other.id]);
        }
        expect(await jobs.task(submitted.id, 0)).toBeUndefined();
        expect(await jobs.events(submitted.id, 0, 9)).toEqual([]);
        expect((await rejection(jobs.remove(submitted.id))).code).toBe("JOB_NOT_FOUND");
        expect(await jobs.removed()).toEqual([submitted.id]);
        await under.reopen();
      }
      await under.port.jobs.purged(submitted.id);
      expect(await under.port.jobs.removed()).toEqual([]);
    });

    test("onChange() names the job of each change; a listener that throws stops nobody", async () => {
      await using under = await open();
      const { jobs, queue } = under.port;
      const changed: string[] = [];
      jobs.onChange(() => {
        throw new Error("a broken listener");
      });
      const listening = jobs.onChange((id) => changed.push(id));
      const told = () => changed.splice(0).length > 0;
      const { job: submitted } = await submit(under.port, 3);
      expect(changed).toEqual([submitted.id]);
      expect(told()).toBe(true);
      const { token } = await mustClaim(under.port);
      expect(told()).toBe(true);
      await queue.started(token, "vm");
      expect(told()).toBe(true);
      await queue.finish(token, SUCCEEDED);
      expect(told()).toBe(true);
      await queue.finish(token, SUCCEEDED);
      expect(told()).toBe(false);
      await jobs.cancel(submitted.id, "enough");
      expect(told()).toBe(true);
      await jobs.remove(submitted.id);
      expect(told()).toBe(true);
      listening[Symbol.dispose]();
      await submit(under.port, 1);
      expect(told()).toBe(false);
    });

    test("a webhook gets a message for each of its events, made when the event happened", async () => {
      await using under = await open();
      const { jobs, deliveries } = under.port;
      let due = 0;
      deliveries.onDue(() => {
        due += 1;
      });
      const webhook = {
        ...{ url: "https://a.example/hook", secret: "0123456789abcdef" },
        events: ["job.running", "job.failed"] as const,
      };
      const { job: submitted } = await submit(under.port, 1, { webhook });
      await runAll(under.port, () => FAILED);
      expect(due).toBe(2);
      const messages = await deliveries.takeDue(9);
      expect(messages.map(({ event }) => event)).toEqual(["job.running", "job.failed"]);
      const states: JobState[] = ["running", "failed"];
      for (const [at, { id, job, event, url, secret, attempts, body }] of messages.entries()) {
        expect({ job, url, secret, attempts }).toEqual({
          ...{ job: submitted.id, url: webhook.url, secret: webhook.secret, attempts: 0 },
        });
        const message = JSON.parse(body);
        expect(message).toMatchObject({ id, type: event, data: { id: submitted.id, state: states[at] } });
        expect(message.data.webhook).toEqual({ url: webhook.url, events: webhook.events });
        expect(Date.parse(message.timestamp)).toBeGreaterThan(0);
        expect(body).not.toContain(webhook.secret);
      }
      await jobs.remove(submitted.id);
      expect(await deliveries.list(submitted.id)).toEqual([]);
    });
  });
}
