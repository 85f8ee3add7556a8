import type { Failure, Job, JobState, Retry, Task, TaskState, WebhookEvent } from "../api/mod.ts";
import type { StoredJob } from "../jobs/ports.ts";

/** More than a job can have tasks: the ids of its tasks are `seq * TASK_SPAN + index`. */
const TASK_SPAN = 2 ** 20;

export interface JobRow {
  seq: number;
  id: string;
  phase: "draft" | "live" | "removed";
  step: "cancel" | "retry" | "remove" | null;
  step_until: number | null;
  place: number | null;
  owner: string;
  family: string;
  priority: number;
  state: JobState;
  reason: string;
  total: number;
  queued: number;
  running: number;
  retrying: number;
  succeeded: number;
  failed: number;
  canceled: number;
  fresh: number;
  ready: number;
  events: number;
  ends: number;
  created_at: number;
  changed_at: number;
  started_at: number | null;
  ended_at: number | null;
}

export interface HeadRow {
  name: string | null;
  worker_name: string | null;
  worker_version: number | null;
  image: string;
  command: string;
  retry: string;
  timeout_ms: number | null;
  tags: string;
  webhook: string | null;
}

/** Columns of HeadRow: all that is shown of a job but what changes. */
export const headColumns =
  "name, worker_name, worker_version, image, command, heads.retry, timeout_ms, tags, webhook";

export interface StoredWebhook {
  url: string;
  /** Sealed. */
  secret?: string;
  events: WebhookEvent[];
}

export interface TaskRow {
  id: number;
  state: TaskState;
  reason: string;
  attempt: number;
  changed_at: number;
  started_at: number | null;
  ended_at: number | null;
  vm: string | null;
  exit_code: number | null;
  signal: string | null;
  error: string | null;
}

/** Ids of a job's tasks: from `first` to `last`, each with its index added to `first`. */
export function taskIds(seq: number): { first: number; last: number } {
  return { first: seq * TASK_SPAN, last: (seq + 1) * TASK_SPAN - 1 };
}

/** Job and index of a task. */
export function ofTask(id: number): { seq: number; index: number } {
  return { seq: Math.floor(id / TASK_SPAN), index: id % TASK_SPAN };
}

/** A moment as the API has it. */
export function timeOf(ms: number): string {
  return new Date(ms).toISOString();
}

/** The same, of a column that may be NULL. */
export function optionalTime(ms: number | null): string | undefined {
  return ms === null ? undefined : timeOf(ms);
}

export function optional<T>(value: T | null): T | undefined {
  return value === null ? undefined : value;
}

export function failureOf(error: string | null): Failure | undefined {
  return error === null ? undefined : (JSON.parse(error) as Failure);
}

export function storedJobOf(row: JobRow & HeadRow): StoredJob {
  return { job: jobOf(row), owner: row.owner, family: row.family };
}

export function jobOf(row: JobRow & HeadRow): Job {
  const webhook = row.webhook === null ? undefined : (JSON.parse(row.webhook) as StoredWebhook);
  const { total, queued, running, retrying, succeeded, failed, canceled } = row;
  return defined({
    id: row.id,
    name: optional(row.name),
    state: row.state,
    reason: row.reason,
    worker: defined({
      name: optional(row.worker_name),
      version: optional(row.worker_version),
      image: row.image,
      command: JSON.parse(row.command) as string[],
    }),
    priority: row.priority,
    tags: JSON.parse(row.tags) as string[],
    retry: JSON.parse(row.retry) as Retry,
    timeoutMs: optional(row.timeout_ms),
    tasks: { total, queued, running, retrying, succeeded, failed, canceled },
    webhook: webhook && { url: webhook.url, events: webhook.events },
    createdAt: timeOf(row.created_at),
    changedAt: timeOf(row.changed_at),
    startedAt: optionalTime(row.started_at),
    endedAt: optionalTime(row.ended_at),
  });
}

/** @param input - JSON */
export function taskOf(row: TaskRow, input: string | null): Task {
  return defined({
    index: ofTask(row.id).index,
    state: row.state,
    reason: row.reason,
    attempt: row.attempt,
    input: input === null ? undefined : (JSON.parse(input) as unknown),
    changedAt: timeOf(row.changed_at),
    startedAt: optionalTime(row.started_at),
    endedAt: optionalTime(row.ended_at),
    vm: optional(row.vm),
    exitCode: optional(row.exit_code),
    signal: optional(row.signal),
    error: failureOf(row.error),
  });
}

/** Without what is undefined, so that equal things also look equal. */
export function defined<T extends object>(value: T): T {
  for (const key of Object.keys(value) as (keyof T)[]) if (value[key] === undefined) delete value[key];
  return value;
}
