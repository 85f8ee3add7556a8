import type { Database } from "./database.ts";
import { taskIds } from "./sqlite-job-rows.ts";

/** Rows that one transaction deletes of a table: a row of inputs has up to 64 KiB. */
const BATCH = 500;
/** Bytes of values that it deletes at most: a row of outputs may have one of 1 MiB. */
const BATCH_BYTES = 32 * 1024 * 1024;

/** Deletes some rows of a job that was removed. Returns whether nothing of it is left. */
export function removeRows(database: Database, seq: number): boolean {
  const { first, last } = taskIds(seq);
  let deleted = database.run(
    `DELETE FROM outputs WHERE id IN (SELECT id FROM
      (SELECT id, sum(bytes) OVER (ORDER BY id) AS total FROM
        (SELECT id, coalesce(octet_length(value), 0) AS bytes FROM outputs WHERE id BETWEEN ? AND ?
          ORDER BY id LIMIT ?))
      WHERE total <= ?)`,
    ...[first, last, BATCH, BATCH_BYTES],
  );
  for (const table of ["inputs", "tasks"]) {
    deleted += database.run(
      `DELETE FROM ${table} WHERE id IN (SELECT id FROM ${table} WHERE id BETWEEN ? AND ? LIMIT ?)`,
      ...[first, last, BATCH],
    );
  }
  deleted += database.run(
    `DELETE FROM artifacts WHERE (task, path) IN
      (SELECT task, path FROM artifacts WHERE task BETWEEN ? AND ? LIMIT ?)`,
    ...[first, last, BATCH],
  );
  deleted += database.run(
    "DELETE FROM events WHERE job = ? AND id IN (SELECT id FROM events WHERE job = ? LIMIT ?)",
    ...[seq, seq, BATCH],
  );
  if (deleted > 0) return false;
  removeHead(database, seq);
  return true;
}

function removeHead(database: Database, seq: number): void {
  const { first, last } = taskIds(seq);
  const head = database.get<{ spec: number }>("SELECT spec FROM heads WHERE job = ?", seq);
  database.run("DELETE FROM abandoned WHERE task BETWEEN ? AND ?", first, last);
  database.run("DELETE FROM heads WHERE job = ?", seq);
  database.run("DELETE FROM jobs WHERE seq = ?", seq);
  database.run(
    "DELETE FROM specs WHERE id = ? AND NOT EXISTS (SELECT 1 FROM heads WHERE heads.spec = specs.id)",
    head?.spec,
  );
}
