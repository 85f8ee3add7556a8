import { describe, expect, test } from "bun:test";
import { rejection } from "../support/agent-peer.ts";
import { HeldTasks } from "../support/jobs-held.ts";
import { type Bench, openBench } from "../support/jobs-setup.ts";

const spec = { image: "base", command: ["true"] };

/** What a submission, or something like it, fails of. */
async function failureOf(work: Promise<unknown>) {
  const { code, message, retryAfterSeconds } = (await rejection(work)) as Error & {
    code: string;
    retryAfterSeconds?: number;
  };
  return { code, message, retryAfterSeconds };
}

async function refusal(bench: Bench, ...submission: Parameters<Bench["submit"]>) {
  return await failureOf(bench.submit(...submission));
}

/** Nothing of refused submissions is there. */
async function expectNoJobs(bench: Bench): Promise<void> {
  expect((await bench.store.jobs.list({ limit: 10 })).items).toEqual([]);
  expect(await bench.store.jobs.load()).toEqual({ activeJobs: 0, waitingTasks: 0, runningTasks: 0 });
}

describe("submit()", () => {
  test("takes the current version of a worker, or the one that is named", async () => {
    await using bench = await openBench({ start: false });
    const parsed = {
      ...spec,
      files: [],
      env: {},
      secrets: {},
      memoryMiB: 512,
      cpus: 1,
      memory: "mapped" as const,
    };
    const retry = { maxAttempts: 2, backoff: { initialMs: 1, factor: 1, maxMs: 1 } };
    await bench.store.workers.put("render", { ...parsed, retry, timeoutMs: 1000 }, "");
    await bench.store.workers.put("render", { ...parsed, retry, memoryMiB: 128 }, "");
    const current = await bench.submit({ count: 1 }, { worker: "render" });
    const first = await bench.submit({ count: 1 }, { worker: "render@1", name: "named", tags: ["a"] });
    const [a, b] = [await bench.store.jobs.get(current), await bench.store.jobs.get(first)];
    expect(a?.job.worker).toMatchObject({ name: "render", version: 2, image: "base" });
    expect(b?.job).toMatchObject({
      ...{ id: first, name: "named", tags: ["a"], retry, timeoutMs: 1000 },
      worker: { version: 1 },
    });
    expect(first).toMatch(/^job_[0-9a-f]{24}$/);
    expect(a?.family).not.toBe(b?.family);
    expect(await refusal(bench, { count: 1 }, { worker: "none" })).toMatchObject({
      code: "WORKER_NOT_FOUND",
    });
    expect(await refusal(bench, { count: 1 }, { worker: "render@3" })).toMatchObject({
      code: "WORKER_NOT_FOUND",
      message: 'There is no worker "render@3"',
    });
  });

  test("refuses a job whose secret is not there", async () => {
    await using bench = await openBench({ start: false });
    const worker = { ...spec, secrets: { TOKEN: "token" } };
    expect(await refusal(bench, { count: 1 }, { worker })).toMatchObject({
      code: "SECRET_NOT_FOUND",
      message: 'There is no secret "token" for TOKEN',
    });
    await bench.store.secrets.put("token", { value: "value" });
    await bench.submit({ count: 1 }, { worker });
  });

  test("refuses a job whose secret is for other keys, as if it were not there", async () => {
    await using bench = await openBench({ start: false });
    const worker = { ...spec, secrets: { TOKEN: "token" } };
    await bench.store.secrets.put("token", { value: "value", keys: ["ann"] });
    await bench.submit({ count: 1 }, { worker }, { owner: "ann" });
    expect(await refusal(bench, { count: 1 }, { worker }, { owner: "eve" })).toMatchObject({
      code: "SECRET_NOT_FOUND",
      message: 'There is no secret "token" for TOKEN',
    });
  });

  test("stores inputs as they come, and shows nothing before the last one", async () => {
    await using bench = await openBench({ start: false });
    const seen: number[] = [];
    const inputs = async function* () {
      for (let n = 0; n < 2500; n++) {
        if (n % 1000 === 0) seen.push((await bench.store.jobs.list({ limit: 10 })).items.length);
        yield { n };
      }
    };
    const id = await bench.submit({ inputs: inputs() });
    expect(seen).toEqual([0, 0, 0]);
    expect((await bench.store.jobs.get(id))?.job.tasks).toMatchObject({ total: 2500, queued: 2500 });
    expect((await bench.store.jobs.task(id, 2499))?.input).toEqual({ n: 2499 });
  });

  test.each([
    ["no inputs", [], "BAD_ARGUMENT", "The job has no inputs, and so no tasks"],
    ["what is no JSON", [1, undefined], "BAD_ARGUMENT", "Input of task 1 is no JSON value"],
    [
      "a large input",
      [..."ab", "é".repeat(32_768)],
      "BODY_TOO_LARGE",
      "Input of task 2 has 65538 bytes as JSON; the most is 65536",
    ],
  ] as const)("refuses %s, and nothing of it stays", async (_what, inputs, code, message) => {
    await using bench = await openBench({ start: false });
    expect(await refusal(bench, { inputs })).toMatchObject({ code, message });
    await expectNoJobs(bench);
  });

  test("keeps nothing of a body that breaks off", async () => {
    await using bench = await openBench({ start: false });
    const inputs = async function* () {
      for (let n = 0; n < 1200; n++) yield n;
      throw new Error("The connection broke");
    };
    expect((await rejection(bench.submit({ inputs: inputs() }))).message).toBe("The connection broke");
    const abort = new AbortController();
    const aborting = async function* () {
      for (let n = 0; n < 1200; n++) yield n;
      abort.abort();
    };
    const submission = { signal: abort.signal };
    expect(await refusal(bench, { inputs: aborting() }, {}, submission)).toMatchObject({ code: "ABORTED" });
    await expectNoJobs(bench);
  });

  test("refuses what is too much for the gateway, before and while inputs come", async () => {
    await using bench = await openBench({ start: false, limits: { waitingTasks: 1000 } });
    let taken = 0;
    const inputs = function* () {
      for (; taken < 100_000; taken++) yield taken;
    };
    expect(await refusal(bench, { inputs: inputs() })).toEqual({
      code: "QUEUE_FULL",
      message: "The gateway would have 1500 waiting tasks; it takes 1000",
      retryAfterSeconds: 30,
    });
    expect(taken).toBeLessThan(2000);
    await expectNoJobs(bench);
    await bench.submit({ count: 999 });
    await bench.submit({ count: 1 });
    expect(await refusal(bench, { count: 1 })).toMatchObject({ code: "QUEUE_FULL" });
  });

  test("counts jobs that are still arriving against the limits", async () => {
    await using bench = await openBench({ start: false, limits: { waitingTasks: 1000 } });
    const arrived = Promise.withResolvers<void>();
    const go = Promise.withResolvers<void>();
    const inputs = async function* () {
      for (let n = 0; n < 800; n++) {
        if (n === 501) arrived.resolve();
        if (n === 501) await go.promise;
        yield n;
      }
    };
    const arriving = bench.submit({ inputs: inputs() });
    await arrived.promise;
    expect(await refusal(bench, { count: 600 })).toMatchObject({ code: "QUEUE_FULL" });
    go.resolve();
    await arriving;
    await bench.submit({ count: 200 });
  });

  test("keeps a key to its limits, and others out of it", async () => {
    const tasks = new HeldTasks();
    const { script } = tasks;
    await using bench = await openBench({ script, slots: 1 });
    const key = { owner: "a", limits: { activeJobs: 2, waitingTasks: 10 } };
    const first = await bench.submit({ count: 8 }, {}, key);
    await tasks.begun(1);
    expect(await refusal(bench, { count: 5 }, {}, key)).toMatchObject({
      code: "LIMIT_REACHED",
      message: "This key would have 12 waiting tasks; it may have 10",
      retryAfterSeconds: 30,
    });
    expect(await refusal(bench, { count: 11 }, {}, key)).toMatchObject({
      code: "LIMIT_REACHED",
      retryAfterSeconds: undefined,
    });
    await bench.submit({ count: 1 }, {}, key);
    expect(await refusal(bench, { count: 1 }, {}, key)).toMatchObject({
      code: "LIMIT_REACHED",
      message: "This key has 2 of 2 active jobs",
    });
    await bench.submit({ count: 100 }, {}, { owner: "b" });
    tasks.end();
    bench.runtime.script = () => ({ exitCode: 0 });
    await bench.ended(first);
    await bench.submit({ count: 1 }, {}, key);
  });

  test("holds a retry to the gateway's and to the key's limits, and tells first what cannot be retried", async () => {
    const script = () => ({ exitCode: 1 });
    await using bench = await openBench({ script, limits: { waitingTasks: 20 } });
    const { id: owner } = await bench.store.keys.create({
      ...{ id: "a", hash: "00", name: "a", scopes: ["submit"], limits: { activeJobs: 1, waitingTasks: 5 } },
    });
    const failed = await bench.submit({ count: 3 }, {}, { owner });
    const large = await bench.submit({ count: 12 });
    await Promise.all([bench.ended(failed), bench.ended(large)]);
    bench.runtime.slots = 0;
    const active = await bench.submit({ count: 1 }, {}, { owner });
    const refused = (id: string, index?: number) => failureOf(bench.jobs.retry(id, index));
    const retryAfterSeconds = expect.any(Number);
    const full = { code: "LIMIT_REACHED", message: "This key has 1 of 1 active jobs", retryAfterSeconds };
    expect(await refused(failed)).toEqual(full);
    expect(await refused(failed, 2)).toEqual(full);
    // Its own job is in no retry's way: what has not ended cannot be retried.
    expect(await refused(active)).toMatchObject({ code: "JOB_ACTIVE" });
    expect(await refused("job_none")).toMatchObject({ code: "JOB_NOT_FOUND" });
    await bench.jobs.cancel(active, "enough");
    const many = await bench.submit({ count: 10 }, {}, { owner: "b" });
    const message = "The gateway would have 22 waiting tasks; it takes 20";
    expect(await refused(large)).toEqual({ code: "QUEUE_FULL", message, retryAfterSeconds });
    expect((await bench.jobs.retry(large, 0)).job.tasks).toMatchObject({ queued: 1, failed: 11 });
    await bench.jobs.cancel(many, "enough");
    expect((await bench.jobs.retry(failed)).job.tasks).toMatchObject({ queued: 3, failed: 0 });
  });

  test("answers a repetition with the same job, also when no more are let in", async () => {
    await using bench = await openBench({ start: false });
    const key = { owner: "a", limits: { activeJobs: 1 }, idempotencyKey: "again" };
    const first = await bench.submit({ count: 3 }, {}, key);
    expect(await bench.submit({ count: 3 }, {}, key)).toBe(first);
    expect(await bench.submit({ inputs: [1, 2, 3] }, {}, key)).toBe(first);
    const other = { ...key, bodyHash: () => "other" };
    expect(await refusal(bench, { count: 4 }, {}, other)).toMatchObject({ code: "IDEMPOTENCY_MISMATCH" });
    const another = { ...key, idempotencyKey: "another" };
    expect(await refusal(bench, { count: 1 }, {}, another)).toMatchObject({ code: "LIMIT_REACHED" });
    expect((await bench.store.jobs.list({ limit: 10 })).items).toHaveLength(1);
  });
});
