import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { FlurryClient, hasEnded, type JobSubmitInput } from "../../runtime/client/mod.ts";
import { openGateway } from "../../runtime/gateway/open.ts";
import { GatewaySandbox } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime, type ScriptedTask } from "../support/scripted-runtime.ts";

/** What tasks do, by the first word of their command. */
const scripts: Record<string, (task: ScriptedTask) => Promise<number> | number> = {
  true: () => 0,
  echo: async (task) => {
    await task.print(`${new TextDecoder().decode(task.stdin)}\n`);
    await task.print("aside\n", "stderr");
    return 0;
  },
  odd: (task) => task.index % 2,
  file: async (task) => {
    await task.leave("a dir/ä?.txt", `content of ${task.index}`);
    return 0;
  },
  stuck: (task) => new Promise((resolve) => task.signal.addEventListener("abort", () => resolve(1))),
  once: (task) => (task.number === 1 && (failing.get(task.job) ?? true) ? 1 : 0),
};
const failing = new Map<string, boolean>();

const runtime = new ScriptedRuntime({
  slots: 8,
  script: async (task) => ({ exitCode: await scripts[task.spec.command![0]!]!(task) }),
});

let sandbox: GatewaySandbox;
let client: FlurryClient;

beforeAll(async () => {
  sandbox = await GatewaySandbox.open({ runtime: () => runtime });
  client = new FlurryClient({ url: sandbox.url });
});

afterAll(async () => {
  await sandbox[Symbol.asyncDispose]();
});

function jobOf(word: string, count: number, more: Partial<JobSubmitInput> = {}): JobSubmitInput {
  return { worker: { image: "base", command: [word] }, tasks: { count }, ...more };
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe("client and gateway: a job", () => {
  test("is submitted, followed to its end, and its results are all there", async () => {
    const { job, replayed } = await client.jobs.submit(jobOf("odd", 5, { name: "five", tags: ["odd"] }));
    expect(replayed).toBe(false);
    expect(job).toMatchObject({ state: "queued", name: "five", tasks: { total: 5 } });
    const types = new Map<string, number>();
    const done = await client.jobs.wait(job.id, {
      onEvent: ({ type }) => types.set(type, (types.get(type) ?? 0) + 1),
    });
    expect(done).toMatchObject({ state: "failed", tasks: { succeeded: 3, failed: 2 } });
    expect(types.get("task.succeeded")).toBe(3);
    expect(types.get("task.failed")).toBe(2);
    const results = await collect(client.jobs.results(job.id));
    expect(results.map(({ index, exitCode }) => [index, exitCode])).toEqual([
      [0, 0],
      [1, 1],
      [2, 0],
      [3, 1],
      [4, 0],
    ]);
    const tasks = await collect(client.jobs.tasks(job.id, { state: "failed", pageSize: 1 }));
    expect(tasks.map(({ index }) => index)).toEqual([1, 3]);
    expect((await client.jobs.task(job.id, 1)).exitCode).toBe(1);
    const found = await collect(client.jobs.list({ tag: "odd", state: "failed" }));
    expect(found.map(({ id }) => id)).toEqual([job.id]);
  });

  test("gives all its events up to now without `follow`, and those after one of them", async () => {
    const { job } = await client.jobs.submit(jobOf("true", 2));
    await client.jobs.wait(job.id);
    const all = await collect(client.jobs.events(job.id, { follow: false }));
    expect(all.at(0)?.type).toBe("job.queued");
    expect(all.at(-1)?.type).toBe("job.succeeded");
    const ids = all.map(({ id }) => id);
    expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b));
    const rest = await collect(client.jobs.events(job.id, { after: ids[1]! }));
    expect(rest).toEqual(all.slice(2));
  });

  test("takes inputs from a stream, and gives back what tasks printed", async () => {
    async function* inputs() {
      for (let n = 0; n < 50; n++) yield await Promise.resolve(n % 2 === 0 ? `text ${n}` : { n });
    }
    const { job } = await client.jobs.submitStream(
      { worker: { image: "base", command: ["echo"] }, priority: 9 },
      inputs(),
    );
    expect(job.tasks.total).toBe(50);
    const results = await collect(client.jobs.results(job.id, { order: "completion", follow: true }));
    const byIndex = new Map(results.map((result) => [result.index, result.stdout]));
    expect(byIndex.size).toBe(50);
    expect(byIndex.get(4)).toBe("text 4\n");
    expect(byIndex.get(5)).toBe('{"n":5}\n');
    const logs = await collect(client.jobs.logs(job.id, { follow: true }));
    expect(logs.filter(({ stream }) => stream === "stderr").length).toBe(50);
    const mine = await collect(client.jobs.logs(job.id, { task: 4 }));
    expect(mine.map(({ stream, text }) => [stream, text]).sort()).toEqual([
      ["stderr", "aside\n"],
      ["stdout", "text 4\n"],
    ]);
  });

  test("leaves artifacts that are read as streams, whole and in part", async () => {
    const { job } = await client.jobs.submit(jobOf("file", 3));
    await client.jobs.wait(job.id);
    const artifacts = await collect(client.jobs.artifacts(job.id, { pageSize: 2 }));
    expect(artifacts.map(({ task, path, size }) => [task, path, size])).toEqual(
      [0, 1, 2].map((task) => [task, "a dir/ä?.txt", 12]),
    );
    const { stream, etag } = await client.jobs.artifact(job.id, 1, "a dir/ä?.txt");
    expect(await new Response(stream).text()).toBe("content of 1");
    expect(etag).toBe(`"${artifacts[1]?.sha256}"`);
    const part = await client.jobs.artifact(job.id, 1, "a dir/ä?.txt", { range: { start: 8 } });
    expect(await new Response(part.stream).text()).toBe("of 1");
    expect(part.size).toBe(12);
    await expect(client.jobs.artifact(job.id, 1, "no")).rejects.toMatchObject({ code: "ARTIFACT_NOT_FOUND" });
  });

  test("is one job for one idempotency key", async () => {
    const options = { idempotencyKey: "one-of-a-kind" };
    const first = await client.jobs.submit(jobOf("true", 1), options);
    const second = await client.jobs.submit(jobOf("true", 1), options);
    expect(second).toMatchObject({ replayed: true, job: { id: first.job.id } });
    await expect(client.jobs.submit(jobOf("true", 2), options)).rejects.toMatchObject({
      code: "IDEMPOTENCY_MISMATCH",
      status: 422,
    });
  });

  test("is canceled, retried and removed", async () => {
    const { job } = await client.jobs.submit(jobOf("stuck", 2));
    await client.jobs.cancel(job.id);
    const canceled = await client.jobs.wait(job.id);
    expect(canceled).toMatchObject({ state: "canceled", tasks: { canceled: 2 } });
    const { job: other } = await client.jobs.submit(jobOf("once", 2));
    expect((await client.jobs.wait(other.id)).state).toBe("failed");
    failing.set(other.id, false);
    await client.jobs.retry(other.id, { index: 1 });
    expect((await client.jobs.wait(other.id)).tasks).toMatchObject({ succeeded: 1, failed: 1 });
    await client.jobs.retry(other.id);
    expect((await client.jobs.wait(other.id)).state).toBe("succeeded");
    await client.jobs.remove(other.id);
    await expect(client.jobs.get(other.id)).rejects.toMatchObject({ code: "JOB_NOT_FOUND" });
  });

  test("is checked without being stored", async () => {
    const before = (await collect(client.jobs.list())).length;
    expect(await client.jobs.validate(jobOf("true", 7))).toMatchObject({ valid: true, tasks: 7 });
    const wrong = { ...jobOf("true", 7), priority: 10 };
    await expect(client.jobs.validate(wrong)).rejects.toMatchObject({
      code: "BAD_ARGUMENT",
      message: expect.stringContaining("priority"),
      requestId: expect.any(String),
    });
    await expect(client.jobs.submitStream({ worker: "no-such" }, [1])).rejects.toMatchObject({
      code: "WORKER_NOT_FOUND",
    });
    expect((await collect(client.jobs.list())).length).toBe(before);
  });
});

test("workers, secrets, hosts and keys go through their lives", async () => {
  const spec = { image: "base", command: ["true"] };
  expect(await client.workers.put("plain", spec)).toMatchObject({ version: 1, current: true });
  expect((await client.workers.put("plain", spec)).version).toBe(1);
  expect((await client.workers.put("plain", { ...spec, cpus: 2 })).version).toBe(2);
  expect((await collect(client.workers.versions("plain"))).map(({ version }) => version)).toEqual([2, 1]);
  expect(await client.workers.setCurrent("plain", 1)).toMatchObject({ version: 1, current: true });
  expect((await client.workers.get("plain", { version: 2 })).spec.cpus).toBe(2);
  expect((await collect(client.workers.list())).map(({ name }) => name)).toEqual(["plain"]);
  const { job } = await client.jobs.submit({ worker: "plain@2", tasks: { count: 1 } });
  expect(job.worker).toMatchObject({ name: "plain", version: 2 });
  await client.workers.remove("plain");
  await expect(client.workers.get("plain")).rejects.toMatchObject({ code: "WORKER_NOT_FOUND" });

  expect(await client.secrets.put("token", "very secret")).toMatchObject({ name: "token" });
  expect((await collect(client.secrets.list())).map(({ name }) => name)).toEqual(["token"]);
  await client.secrets.remove("token");
  await expect(client.secrets.remove("token")).rejects.toMatchObject({ code: "SECRET_NOT_FOUND" });

  expect(await collect(client.hosts.list())).toMatchObject([{ slots: 8, state: "up" }]);
  expect(await collect(client.jobs.deliveries(job.id))).toEqual([]);

  const admin = await client.keys.create({ name: "admin", scopes: ["admin"] });
  await expect(client.jobs.get(job.id)).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
  client = new FlurryClient({ url: sandbox.url, key: admin.key });
  const reader = await client.keys.create({ name: "reader", scopes: ["read"] });
  const other = new FlurryClient({ url: sandbox.url, key: reader.key });
  await expect(other.jobs.submit(jobOf("true", 1))).rejects.toMatchObject({ code: "FORBIDDEN" });
  expect((await collect(client.keys.list())).map(({ name }) => name).sort()).toEqual(["admin", "reader"]);
  await client.keys.remove(reader.id);
  await expect(collect(other.jobs.list())).rejects.toMatchObject({ code: "UNAUTHENTICATED" });
});

test("events and results go on over a gateway that is stopped and started again", async () => {
  const scripted = () =>
    new ScriptedRuntime({
      slots: 1,
      script: async ({ index }) => {
        if (index === 1) await new Promise((resolve) => setTimeout(resolve, 50));
        return { exitCode: 0 };
      },
    });
  await using first = await GatewaySandbox.open({ runtime: scripted });
  const { port, url } = first;
  const follower = new FlurryClient({ url, signal: AbortSignal.timeout(50_000) });
  const { job } = await follower.jobs.submit(jobOf("true", 20));
  const ids: number[] = [];
  const watching = (async () => {
    for await (const { id } of follower.jobs.events(job.id)) ids.push(id);
  })();
  const reading = collect(follower.jobs.results(job.id, { follow: true }));
  while (ids.length < 5) await new Promise((resolve) => setTimeout(resolve, 5));
  await first.end();
  const listen = { hostname: "127.0.0.1", port };
  await using _second = await openGateway({ dir: first.dir, listen, runtime: scripted });
  await watching;
  expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b));
  expect((await reading).map(({ index }) => index)).toEqual(Array.from({ length: 20 }, (_, index) => index));
  const done = await follower.jobs.get(job.id);
  expect(hasEnded(done)).toBe(true);
  expect(done.tasks.succeeded).toBe(20);
}, 60_000);
