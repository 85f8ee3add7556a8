import type { JobState, TaskCounts, TaskState } from "../../runtime/api/mod.ts";

export interface ModelTask {
  state: TaskState;
  attempt: number;
  failures: number;
  /** By the monotonic clock. */
  readyAt: number;
  token?: string | undefined;
  leaseUntil: number;
}

export interface ModelJob {
  id: string;
  state: JobState;
  tasks: ModelTask[];
}

/** What an end of an attempt is to the model. */
export type ModelEnd =
  | { state: "succeeded" | "failed" | "canceled" }
  | {
      state: "retrying" | "queued";
      delayMs: number;
      infrastructure: boolean;
    };

/** What jobs, tasks and leases have to be after any sequence of changes: the simplest thing that says so. */
export class StoreModel {
  readonly jobs: ModelJob[] = [];
  /** Tokens that are held no longer. */
  readonly stale: string[] = [];

  submit(id: string, count: number): void {
    this.jobs.push({ id, state: "queued", tasks: Array.from({ length: count }, newTask) });
  }

  /** The task that is to be claimed next. */
  next(now: number): { job: ModelJob; index: number } | undefined {
    for (const job of this.jobs) {
      if (job.state !== "queued" && job.state !== "running") continue;
      const index = job.tasks.findIndex((task) => waits(task) && task.readyAt <= now);
      if (index >= 0) return { job, index };
    }
    return undefined;
  }

  claim(job: ModelJob, index: number, token: string, leaseUntil: number): ModelTask {
    const task = job.tasks[index]!;
    Object.assign(task, { state: "running", attempt: task.attempt + 1, token, leaseUntil });
    job.state = "running";
    return task;
  }

  held(): { job: ModelJob; task: ModelTask; token: string }[] {
    return this.jobs.flatMap((job) =>
      job.tasks.flatMap((task) => (task.token === undefined ? [] : [{ job, task, token: task.token }])),
    );
  }

  finish(job: ModelJob, task: ModelTask, end: ModelEnd, now: number): void {
    this.stale.push(task.token!);
    task.token = undefined;
    if (end.state === "queued" && job.state !== "canceling") {
      task.attempt -= 1;
      if (end.infrastructure) task.failures += 1;
    }
    if ("delayMs" in end && job.state === "canceling") task.state = "canceled";
    else task.state = end.state;
    if ("delayMs" in end) task.readyAt = now + end.delayMs;
    settle(job);
  }

  expire(now: number): string[] {
    const lost = this.held().filter(({ task }) => task.leaseUntil <= now);
    for (const { job, task } of lost)
      this.finish(job, task, { state: "queued", delayMs: 0, infrastructure: true }, now);
    return lost.map(({ token }) => token);
  }

  cancel(job: ModelJob): void {
    if (hasEnded(job)) return;
    job.state = "canceling";
    for (const task of job.tasks) if (waits(task)) task.state = "canceled";
    settle(job);
  }

  /** Whether there was something to be tried again. */
  retry(job: ModelJob, indexes: readonly number[]): boolean {
    const again = indexes
      .map((index) => job.tasks[index]!)
      .filter(({ state }) => state === "failed" || state === "canceled");
    for (const task of again) Object.assign(task, newTask());
    if (again.length > 0) job.state = "queued";
    return again.length > 0;
  }

  remove(job: ModelJob): void {
    this.jobs.splice(this.jobs.indexOf(job), 1);
  }

  reopen(now: number): void {
    for (const { job, task } of this.held()) {
      this.finish(job, task, { state: "queued", delayMs: 0, infrastructure: false }, now);
    }
    for (const job of this.jobs) for (const task of job.tasks) task.readyAt = 0;
  }
}

export function hasEnded(job: ModelJob): boolean {
  return job.state === "succeeded" || job.state === "failed" || job.state === "canceled";
}

export function countsOf(job: ModelJob): TaskCounts {
  const counts: TaskCounts = {
    total: 0,
    queued: 0,
    running: 0,
    retrying: 0,
    succeeded: 0,
    failed: 0,
    canceled: 0,
  };
  for (const { state } of job.tasks) {
    counts.total += 1;
    counts[state] += 1;
  }
  return counts;
}

function newTask(): ModelTask {
  return { state: "queued", attempt: 0, failures: 0, readyAt: 0, leaseUntil: 0 };
}

function waits({ state }: ModelTask): boolean {
  return state === "queued" || state === "retrying";
}

function settle(job: ModelJob): void {
  const { total, succeeded, failed, canceled } = countsOf(job);
  if (succeeded + failed + canceled < total) return;
  if (job.state === "canceling") job.state = "canceled";
  else job.state = failed > 0 ? "failed" : canceled > 0 ? "canceled" : "succeeded";
}
