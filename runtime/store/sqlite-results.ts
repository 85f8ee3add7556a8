import type { Artifact, Page, TaskResult } from "../api/mod.ts";
import type { ResultQuery, StoredArtifact } from "../jobs/ports.ts";
import { cursorOf, readCursor } from "./cursor.ts";
import type { Database } from "./database.ts";
import { PAGE_CHARACTERS } from "./sqlite-job-reader.ts";
import {
  defined,
  failureOf,
  ofTask,
  optional,
  optionalTime,
  type TaskRow,
  taskIds,
  timeOf,
} from "./sqlite-job-rows.ts";

interface ResultRow extends TaskRow {
  ended: number | null;
  stdout: Uint8Array | null;
  value: string | null;
  stdout_truncated: number;
  artifacts: number;
}

interface ArtifactRow {
  task: number;
  path: string;
  size: number;
  mode: number;
  sha256: string;
  blob: string;
}

/** Reads what tasks left behind. */
export class ResultReader {
  readonly #database: Database;

  constructor(database: Database) {
    this.#database = database;
  }

  results(id: string, { order, after = 0, limit }: ResultQuery): { items: TaskResult[]; next: number } {
    const items: TaskResult[] = [];
    const seq = this.#seq(id);
    let next = after;
    let characters = 0;
    if (seq === undefined) return { items, next };
    const rows = order === "index" ? this.#byIndex(seq, after, limit) : this.#byEnd(seq, after, limit);
    for (const row of rows) {
      if (row.ended === null) break;
      items.push(resultOf(row));
      next = order === "index" ? ofTask(row.id).index + 1 : row.ended;
      characters += (row.stdout?.length ?? 0) + (row.value?.length ?? 0);
      if (characters > PAGE_CHARACTERS) break;
    }
    return { items, next };
  }

  artifacts(
    id: string,
    query: { task?: number | undefined; cursor?: string | undefined; limit: number },
  ): Page<Artifact> {
    const { task, cursor, limit } = query;
    const [index, path] = cursor === undefined ? [0, ""] : readCursor(cursor, "number", "string");
    const seq = this.#seq(id);
    if (seq === undefined || !isIndex(index) || (task !== undefined && !isIndex(task))) return { items: [] };
    const { first, last } = taskIds(seq);
    const rows = this.#database.all<ArtifactRow>(
      `SELECT * FROM artifacts WHERE (task, path) > (?, ?) AND task BETWEEN ? AND ? ORDER BY task, path LIMIT ?`,
      ...[first + index, path, first + (task ?? 0), task === undefined ? last : first + task, limit + 1],
    );
    const items = rows.slice(0, limit).map(artifactOf);
    const end = items.at(-1);
    return defined({ items, next: end && rows.length > limit ? cursorOf(end.task, end.path) : undefined });
  }

  artifact(id: string, task: number, path: string): StoredArtifact | undefined {
    const seq = this.#seq(id);
    if (seq === undefined || !isIndex(task)) return undefined;
    const row = this.#database.get<ArtifactRow>(
      "SELECT * FROM artifacts WHERE task = ? AND path = ?",
      taskIds(seq).first + task,
      path,
    );
    return row && { artifact: artifactOf(row), blob: row.blob };
  }

  #seq(id: string): number | undefined {
    return this.#database.get<{ seq: number }>("SELECT seq FROM jobs WHERE id = ? AND phase = 'live'", id)
      ?.seq;
  }

  #byIndex(seq: number, after: number, limit: number): Iterable<ResultRow> {
    const { first, last } = taskIds(seq);
    return this.#database.iterate<ResultRow>(
      `SELECT tasks.*, stdout, value FROM tasks LEFT JOIN outputs ON outputs.id = tasks.id
        WHERE tasks.id BETWEEN ? AND ? ORDER BY tasks.id LIMIT ?`,
      ...[first + Math.max(0, after), last, limit],
    );
  }

  #byEnd(seq: number, after: number, limit: number): Iterable<ResultRow> {
    return this.#database.iterate<ResultRow>(
      `SELECT tasks.*, stdout, value FROM tasks INDEXED BY tasks_ended LEFT JOIN outputs ON outputs.id = tasks.id
        WHERE job = ? AND ended IS NOT NULL AND ended > ? ORDER BY ended LIMIT ?`,
      ...[seq, after, limit],
    );
  }
}

/** An index that lies within the ids of one job. */
function isIndex(index: number): boolean {
  return Number.isInteger(index) && index >= 0 && index < 2 ** 20;
}

function resultOf(row: ResultRow): TaskResult {
  return defined({
    index: ofTask(row.id).index,
    state: row.state as TaskResult["state"],
    attempt: row.attempt,
    exitCode: optional(row.exit_code),
    signal: optional(row.signal),
    error: failureOf(row.error),
    value: row.value === null ? undefined : JSON.parse(row.value),
    stdout: Buffer.from(row.stdout ?? []).toString("utf8"),
    stdoutTruncated: row.stdout_truncated === 1,
    artifacts: row.artifacts,
    ended: row.ended ?? 0,
    startedAt: optionalTime(row.started_at),
    endedAt: timeOf(row.ended_at ?? row.changed_at),
  });
}

function artifactOf(row: ArtifactRow): Artifact {
  const { path, size, mode, sha256 } = row;
  return { task: ofTask(row.task).index, path, size, mode, sha256 };
}
