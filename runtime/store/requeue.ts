import type { JobChange } from "./job-change.ts";
import type { Ledger } from "./ledger.ts";
import { ofTask } from "./sqlite-job-rows.ts";

/** Queues a task that has ended again, as if it had never been tried. */
export function requeue(ledger: Ledger, job: JobChange, id: number, from: "failed" | "canceled"): void {
  const { database } = ledger;
  // The artifacts of its last result go; their blobs are not the store's to remove.
  const left = database.run(
    "INSERT INTO abandoned (token, task) SELECT token, id FROM tasks WHERE id = ? AND token IS NOT NULL",
    id,
  );
  if (left > 0) job.leaveBlobs();
  const reason = "To be tried again, as was asked for";
  database.run(
    `UPDATE tasks SET state = 'queued', reason = ?, attempt = 0, failures = 0, ready_at = 0, ended = NULL,
      changed_at = ?, started_at = NULL, ended_at = NULL, vm = NULL, exit_code = NULL, signal = NULL,
      error = NULL, stdout_truncated = 0, artifacts = 0, token = NULL WHERE id = ?`,
    ...[reason, job.now, id],
  );
  database.run("DELETE FROM outputs WHERE id = ?", id);
  database.run("DELETE FROM artifacts WHERE task = ?", id);
  job.move(from, "queued");
  job.addReady();
  job.event({ type: "task.queued", reason, task: ofTask(id).index, attempt: 0 });
}
