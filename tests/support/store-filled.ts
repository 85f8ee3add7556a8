import { expect } from "bun:test";
import { createHash } from "node:crypto";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import type { Store } from "../../runtime/jobs/ports.ts";
import { contentOf, pieces } from "./store-conformance-blobs.ts";
import { allTasks, mustClaim, result, submit } from "./store-jobs.ts";

export const SECRET = "the-secret-that-nobody-may-see";
export const WEBHOOK_SECRET = "the-signing-key-that-nobody-may-see";
/** The secret part of a key: the store gets its hash only. */
const KEY_SECRET = "the-key-that-nobody-may-see";

const JOB = "job_0123456789abcdef01234567";
const RUNNING = "job_0123456789abcdef01234568";
const KEY = {
  ...{ id: "k1", name: "builds", scopes: ["submit" as const], limits: { activeJobs: 3 } },
  hash: createHash("sha256").update(KEY_SECRET).digest("hex"),
};
const SPEC = WorkerSpec.parse({ image: "base", command: ["render"], secrets: { TOKEN: "token" } });
const STDOUT = "done\0\u{1f600}\n";
const CONTENT = new Uint8Array(100_000).map((_, at) => at % 251);
const HOST = { id: "h1", name: "alpha", cores: 2, memoryBytes: 2 ** 32, slots: 2 };

/** Puts something into every part of a store: a job that has ended and one that runs among it. */
export async function fillStore(store: Store): Promise<void> {
  await store.keys.create(KEY);
  await store.secrets.put("token", { value: SECRET });
  await store.workers.put("render", SPEC, "");
  await store.hosts.register(HOST);
  const webhook = { url: "https://example.com/hook", secret: WEBHOOK_SECRET, events: [] };
  await submit(store, ['{"frame":1}'], {
    id: JOB,
    worker: { name: "render", version: 1 },
    spec: SPEC,
    webhook: { ...webhook, events: ["job.succeeded"] },
  });
  const claimed = await mustClaim(store);
  await store.queue.started(claimed.token, "vm-1");
  const blob = `${JOB}/0/0-${claimed.token}/0`;
  const stored = await store.blobs.put(blob, pieces(CONTENT, 30_000));
  await store.logs.append(JOB, [{ task: 0, attempt: 1, stream: "stdout", text: STDOUT }]);
  const artifacts = [{ path: "frame.png", mode: 0o644, blob, ...stored }];
  await store.queue.finish(claimed.token, {
    state: "succeeded",
    reason: "Exited with 0",
    result: result({ stdout: STDOUT, artifacts }),
  });
  await submit(store, 2, { id: RUNNING, webhook: { ...webhook, events: ["job.running"] } });
  await mustClaim(store);
}

/** Checks that a store that was opened again has all that `fillStore` put into it. */
export async function expectFilled(store: Store): Promise<void> {
  expect(await store.keys.find("k1")).toMatchObject(KEY);
  expect(await store.secrets.value("token", "")).toBe(SECRET);
  expect(await store.workers.get("render")).toMatchObject({ version: 1, current: true, spec: SPEC });
  expect(await store.hosts.list()).toMatchObject([{ id: "h1", slots: 2, state: "down" }]);
  await expectEnded(store);
  await expectRunning(store);
  const due = await store.deliveries.takeDue(10);
  expect(due.map(({ job, event, secret }) => [job, event, secret])).toEqual([
    [JOB, "job.succeeded", WEBHOOK_SECRET],
    [RUNNING, "job.running", WEBHOOK_SECRET],
  ]);
}

async function expectEnded(store: Store): Promise<void> {
  const { job } = (await store.jobs.get(JOB))!;
  expect(job).toMatchObject({
    state: "succeeded",
    worker: { name: "render", version: 1 },
    tasks: { succeeded: 1 },
  });
  expect(await store.jobs.task(JOB, 0)).toMatchObject({
    state: "succeeded",
    attempt: 1,
    input: { frame: 1 },
  });
  const { items } = await store.jobs.results(JOB, { order: "index", limit: 10 });
  expect(items).toMatchObject([{ index: 0, state: "succeeded", stdout: STDOUT, artifacts: 1 }]);
  const { artifact, blob } = (await store.jobs.artifact(JOB, 0, "frame.png"))!;
  expect(artifact).toMatchObject({ size: CONTENT.length, mode: 0o644 });
  const content = await contentOf(store.blobs, blob);
  expect(createHash("sha256").update(content).digest("hex")).toBe(artifact.sha256);
  expect(await store.logs.read(JOB, { after: 0, limit: 10 })).toMatchObject([{ task: 0, text: STDOUT }]);
}

/** Its running task waits again, and its attempt does not count. */
async function expectRunning(store: Store): Promise<void> {
  expect((await allTasks(store, RUNNING)).map(({ state, attempt }) => [state, attempt])).toEqual([
    ["queued", 0],
    ["queued", 0],
  ]);
  expect(await store.queue.abandoned()).toMatchObject([{ job: RUNNING, index: 0 }]);
}
