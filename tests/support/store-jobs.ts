import { randomBytes } from "node:crypto";
import { Retry, type Task, WorkerSpec } from "../../runtime/api/mod.ts";
import type {
  AttemptEnd,
  AttemptResult,
  Blocked,
  Claim,
  NewJob,
  Store,
  StoredJob,
} from "../../runtime/jobs/ports.ts";
import type { OpenPort } from "./store-port.ts";

/** What of a store has to do with jobs. */
export type JobPorts = Pick<Store, "jobs" | "queue" | "deliveries">;
export type OpenJobs = OpenPort<JobPorts>;

export const NOTHING_BLOCKED: Blocked = { families: new Set(), owners: new Set() };
export const LANE = { owner: "", priority: 5 };

export function newJob(fields: Partial<NewJob> = {}): NewJob {
  return {
    id: `job_${randomBytes(12).toString("hex")}`,
    owner: "",
    spec: WorkerSpec.parse({ image: "base", command: ["true"] }),
    family: "family",
    priority: 5,
    retry: Retry.parse({}),
    env: {},
    tags: [],
    ...fields,
  };
}

/** Submits a job of tasks with these inputs, or of so many without. */
export async function submit(
  { jobs }: JobPorts,
  tasks: number | readonly (string | undefined)[],
  fields: Partial<NewJob> = {},
): Promise<StoredJob> {
  await using draft = await jobs.draft(newJob(fields));
  if (typeof tasks === "number") await draft.addCount(tasks);
  else await draft.add(tasks);
  return (await draft.commit("hash")).stored;
}

/** Claims the next task of a lane; undefined when there is none. */
export function claim(
  { queue }: JobPorts,
  { lane = LANE, blocked = NOTHING_BLOCKED, leaseMs = 60_000 } = {},
): Promise<Claim | undefined> {
  return queue.claim(lane, { blocked, host: "host", leaseMs });
}

/** Claims the next task of a lane, which there is. */
export async function mustClaim(
  store: JobPorts,
  options: { lane?: typeof LANE; leaseMs?: number } = {},
): Promise<Claim> {
  const claimed = await claim(store, options);
  if (!claimed) throw new Error("No task could be claimed");
  return claimed;
}

export function result(fields: Partial<AttemptResult> = {}): AttemptResult {
  return { exitCode: 0, stdout: "", stdoutTruncated: false, artifacts: [], ...fields };
}

export const SUCCEEDED: AttemptEnd = { state: "succeeded", reason: "Exited with 0", result: result() };
export const FAILED: AttemptEnd = {
  state: "failed",
  reason: "Exited with 1",
  result: result({ exitCode: 1, error: { code: "TASK_FAILED", message: "Exited with 1" } }),
};
export const REQUEUED = {
  state: "queued",
  reason: "The gateway ends",
  delayMs: 0,
} as const satisfies AttemptEnd;

/** Claims and finishes until a lane has no task ready. */
export async function runAll(
  store: JobPorts,
  end: (claimed: Claim) => AttemptEnd = () => SUCCEEDED,
): Promise<Claim[]> {
  const claims: Claim[] = [];
  for (let next = await claim(store); next; next = await claim(store)) {
    claims.push(next);
    await store.queue.finish(next.token, end(next));
  }
  return claims;
}

/** Waits until a job is as it should be. */
export async function until(
  { jobs }: JobPorts,
  id: string,
  condition: (stored: StoredJob) => boolean,
): Promise<StoredJob> {
  const done = Promise.withResolvers<StoredJob>();
  const look = () =>
    jobs.get(id).then((stored) => {
      if (stored && condition(stored)) done.resolve(stored);
    }, done.reject);
  using _listening = jobs.onChange((changed) => {
    if (changed === id) void look();
  });
  await look();
  return await done.promise;
}

export async function allTasks({ jobs }: JobPorts, id: string, limit = 1000): Promise<Task[]> {
  const tasks: Task[] = [];
  let cursor: string | undefined;
  do {
    const page = await jobs.tasks(id, { cursor, limit });
    tasks.push(...page.items);
    cursor = page.next;
  } while (cursor !== undefined);
  return tasks;
}

export async function job({ jobs }: JobPorts, id: string): Promise<StoredJob["job"]> {
  const stored = await jobs.get(id);
  if (!stored) throw new Error(`There is no ${id}`);
  return stored.job;
}

export async function eventTypes({ jobs }: JobPorts, id: string): Promise<string[]> {
  return (await jobs.events(id, 0, 10_000)).map(({ type }) => type);
}
