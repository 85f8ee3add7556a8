import type { JobEvent, Page, Task, TaskState } from "../api/mod.ts";
import type { JobQuery, StoredJob } from "../jobs/ports.ts";
import { cursorOf, readCursor } from "./cursor.ts";
import type { Database, Parameter } from "./database.ts";
import {
  defined,
  failureOf,
  type HeadRow,
  headColumns,
  type JobRow,
  optional,
  storedJobOf,
  type TaskRow,
  taskIds,
  taskOf,
  timeOf,
} from "./sqlite-job-rows.ts";

/** Characters of commands, inputs or outputs after which a page ends, whatever its limit. */
export const PAGE_CHARACTERS = 4 * 1024 * 1024;

interface EventRow {
  id: number;
  at: number;
  type: JobEvent["type"];
  reason: string;
  task: number | null;
  attempt: number | null;
  vm: string | null;
  error: string | null;
}

/** Reads jobs, tasks and events. */
export class JobReader {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  get(id: string): StoredJob | undefined {
    const row = this.#database.get<JobRow & HeadRow>(
      `SELECT jobs.*, ${headColumns} FROM jobs JOIN heads ON heads.job = jobs.seq
        WHERE id = ? AND phase = 'live'`,
      id,
    );
    return row && storedJobOf(row);
  }

  list(query: JobQuery): Page<StoredJob> {
    const { limit, cursor } = query;
    const before = cursor === undefined ? Number.MAX_SAFE_INTEGER : readCursor(cursor, "number")[0];
    const items: StoredJob[] = [];
    let characters = 0;
    let last = before;
    for (const row of this.#list(query, before, limit + 1)) {
      if (items.length === limit || characters > PAGE_CHARACTERS) {
        return { items, next: cursorOf(last) };
      }
      items.push(storedJobOf(row));
      characters += row.command.length + row.tags.length;
      last = row.place!;
    }
    return { items };
  }

  task(id: string, index: number): Task | undefined {
    const job = this.job(id);
    if (!job || !(index >= 0 && index < job.total) || !Number.isInteger(index)) return undefined;
    return this.#tasksOf(job, index, index, 1)[0];
  }

  tasks(
    id: string,
    query: { state?: TaskState | undefined; cursor?: string | undefined; limit: number },
  ): Page<Task> {
    const { state, cursor, limit } = query;
    const from = cursor === undefined ? 0 : readCursor(cursor, "number")[0];
    const job = this.job(id);
    if (!job || from < 0 || from >= job.total) return { items: [] };
    const found = this.#tasksOf(job, from, job.total - 1, limit + 1, state);
    const items = found.slice(0, limit);
    const more = found[items.length] ?? this.#afterFullPage(job, items, state);
    return defined({ items, next: more && cursorOf(more.index) });
  }

  events(id: string, after: number, limit: number): JobEvent[] {
    const job = this.job(id);
    if (!job) return [];
    const rows = this.#database.all<EventRow>(
      `SELECT id, at, type, reason, task, attempt, vm, error FROM events WHERE job = ? AND id > ?
        ORDER BY id LIMIT ?`,
      ...[job.seq, after, limit],
    );
    return rows.map(eventOf);
  }

  load(owner?: string): { activeJobs: number; waitingTasks: number; runningTasks: number } {
    const sums = this.#database.get<{ activeJobs: number; waitingTasks: number; runningTasks: number }>(
      `SELECT coalesce(sum(active_jobs), 0) AS activeJobs, coalesce(sum(waiting_tasks), 0) AS waitingTasks,
        coalesce(sum(running_tasks), 0) AS runningTasks FROM loads${owner === undefined ? "" : " WHERE owner = ?"}`,
      ...(owner === undefined ? [] : [owner]),
    )!;
    return { ...sums };
  }

  /** A job that can be seen. */
  job(id: string): JobRow | undefined {
    return this.#database.get<JobRow>("SELECT * FROM jobs WHERE id = ? AND phase = 'live'", id);
  }

  #list({ owner, state, tag }: JobQuery, before: number, limit: number): Iterable<JobRow & HeadRow> {
    const index = `jobs_${[owner !== undefined && "owner", state && "state"].filter(Boolean).join("_") || "place"}`;
    // CROSS JOIN keeps the order of the tables: tags first, where there is one.
    const from =
      tag === undefined
        ? `jobs INDEXED BY ${index} CROSS JOIN heads ON heads.job = jobs.seq WHERE jobs.place < ?`
        : `job_tags CROSS JOIN jobs ON jobs.seq = job_tags.job CROSS JOIN heads ON heads.job = jobs.seq
            WHERE tag = ? AND job_tags.place < ?`;
    const order = tag === undefined ? "jobs.place" : "job_tags.place";
    const parameters: Parameter[] = tag === undefined ? [before] : [tag, before];
    if (owner !== undefined) parameters.push(owner);
    if (state !== undefined) parameters.push(state);
    return this.#database.iterate<JobRow & HeadRow>(
      `SELECT jobs.*, ${headColumns} FROM ${from} AND phase = 'live'
        ${owner === undefined ? "" : "AND owner = ?"} ${state === undefined ? "" : "AND state = ?"}
        ORDER BY ${order} DESC LIMIT ?`,
      ...parameters,
      limit,
    );
  }

  /** Tasks `from` to `to`, at most `limit`, and not many more characters than a page has. */
  #tasksOf(job: JobRow, from: number, to: number, limit: number, state?: TaskState): Task[] {
    const { first } = taskIds(job.seq);
    const tasks: Task[] = [];
    let characters = 0;
    const byState = state === undefined ? "" : "AND job = ? AND state = ?";
    const rows = this.#database.iterate<TaskRow & { input: string | null }>(
      `SELECT tasks.*, input FROM tasks ${state === undefined ? "" : "INDEXED BY tasks_state"}
        LEFT JOIN inputs ON inputs.id = tasks.id
        WHERE tasks.id BETWEEN ? AND ? ${byState} ORDER BY tasks.id LIMIT ?`,
      ...[first + from, first + to, ...(state === undefined ? [] : [job.seq, state]), limit],
    );
    for (const row of rows) {
      tasks.push(taskOf(row, row.input));
      characters += row.input?.length ?? 0;
      if (characters > PAGE_CHARACTERS) return tasks;
    }
    if (state !== undefined && state !== "queued") return tasks;
    for (let index = Math.max(from, job.fresh); index <= to && tasks.length < limit; index += 1) {
      const input = this.#database.get<{ input: string }>(
        "SELECT input FROM inputs WHERE id = ?",
        first + index,
      )?.input;
      tasks.push(freshTask(job, index, input));
      characters += input?.length ?? 0;
      if (characters > PAGE_CHARACTERS) break;
    }
    return tasks;
  }

  /** The task after a page that ended for its characters. */
  #afterFullPage(job: JobRow, items: readonly Task[], state?: TaskState): Task | undefined {
    const last = items.at(-1);
    return last && this.#tasksOf(job, last.index + 1, job.total - 1, 1, state)[0];
  }
}

/** A task that was never claimed: it has no row. */
function freshTask(job: JobRow, index: number, input: string | undefined): Task {
  const row: TaskRow = {
    id: taskIds(job.seq).first + index,
    state: "queued",
    reason: "Submitted",
    attempt: 0,
    changed_at: job.created_at,
    started_at: null,
    ended_at: null,
    vm: null,
    exit_code: null,
    signal: null,
    error: null,
  };
  return taskOf(row, input ?? null);
}

function eventOf(row: EventRow): JobEvent {
  return defined({
    id: row.id,
    at: timeOf(row.at),
    type: row.type,
    reason: row.reason,
    task: optional(row.task),
    attempt: optional(row.attempt),
    vm: optional(row.vm),
    error: failureOf(row.error),
  });
}
