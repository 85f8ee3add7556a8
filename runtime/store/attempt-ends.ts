import type { Failure, TaskState } from "../api/mod.ts";
import type { AttemptEnd, AttemptResult } from "../jobs/ports.ts";
import type { JobChange } from "./job-change.ts";
import type { Ledger } from "./ledger.ts";
import { ofTask } from "./sqlite-job-rows.ts";

interface EndingTask {
  id: number;
  state: TaskState;
  attempt: number;
  vm: string | null;
}

/** Ends the running attempt of a task that has this token: its row, its job's counters, and the event. */
export function endAttempt(
  ledger: Ledger,
  job: JobChange,
  { task: taskId, token }: { task: number; token: string },
  end: AttemptEnd,
): void {
  const task = ledger.database.get<EndingTask>(
    "SELECT id, state, attempt, vm FROM tasks WHERE id = ?",
    taskId,
  )!;
  if (job.row.state === "canceling" && (end.state === "queued" || end.state === "retrying")) {
    endCanceled(ledger, job, task, job.row.reason);
    return;
  }
  switch (end.state) {
    case "succeeded":
    case "failed":
      endWithResult(ledger, job, { ...task, token }, end);
      break;
    case "canceled":
      endCanceled(ledger, job, task, end.reason);
      break;
    case "retrying":
      wait(ledger, job, task, { ...end, attempt: task.attempt, failures: 0 });
      break;
    case "queued":
      // Only what has an error is the infrastructure's failure; a gateway that ends is none.
      wait(ledger, job, task, { ...end, attempt: task.attempt - 1, failures: end.error ? 1 : 0 });
      break;
  }
}

/** Cancels a task that waits or runs. */
export function endCanceled(ledger: Ledger, job: JobChange, task: EndingTask, reason: string): void {
  job.row.ends += 1;
  ledger.database.run(
    `UPDATE tasks SET state = 'canceled', reason = ?, ready_at = NULL, ended = ?, changed_at = ?, ended_at = ?
      WHERE id = ?`,
    ...[reason, job.row.ends, job.now, job.now, task.id],
  );
  tell(job, task, { state: "canceled", reason });
}

function endWithResult(
  ledger: Ledger,
  job: JobChange,
  task: EndingTask & { token: string },
  end: { state: "succeeded" | "failed"; reason: string; result: AttemptResult },
): void {
  const { database } = ledger;
  const { result } = end;
  job.row.ends += 1;
  database.run(
    `UPDATE tasks SET state = ?, reason = ?, ended = ?, changed_at = ?, ended_at = ?, exit_code = ?, signal = ?,
      error = ?, stdout_truncated = ?, artifacts = ?, token = ? WHERE id = ?`,
    ...[end.state, end.reason, job.row.ends, job.now, job.now, result.exitCode, result.signal],
    ...[json(result.error), result.stdoutTruncated ? 1 : 0, result.artifacts.length],
    ...[result.artifacts.length > 0 ? task.token : undefined, task.id],
  );
  if (result.stdout !== "" || result.value !== undefined) {
    database.run(
      "INSERT INTO outputs (id, stdout, value) VALUES (?, ?, ?)",
      ...[task.id, Buffer.from(result.stdout), result.value],
    );
  }
  for (const { path, size, mode, sha256, blob } of result.artifacts) {
    database.run(
      "INSERT INTO artifacts (task, path, size, mode, sha256, blob) VALUES (?, ?, ?, ?, ?, ?)",
      ...[task.id, path, size, mode, sha256, blob],
    );
  }
  tell(job, task, { ...end, error: result.error });
}

function wait(
  ledger: Ledger,
  job: JobChange,
  task: EndingTask,
  end: {
    state: "retrying" | "queued";
    reason: string;
    error?: Failure | undefined;
    delayMs: number;
    attempt: number;
    failures: number;
  },
): void {
  const readyAt = end.delayMs > 0 ? ledger.time() + end.delayMs : 0;
  ledger.database.run(
    `UPDATE tasks SET state = ?, reason = ?, attempt = ?, failures = failures + ?, ready_at = ?, changed_at = ?,
      error = ? WHERE id = ?`,
    ...[end.state, end.reason, end.attempt, end.failures, readyAt, job.now, json(end.error), task.id],
  );
  if (readyAt === 0) job.addReady();
  tell(job, task, end);
}

function tell(
  job: JobChange,
  task: EndingTask,
  end: { state: TaskState; reason: string; error?: Failure | undefined },
): void {
  job.move(task.state, end.state);
  job.event({
    type: `task.${end.state}`,
    reason: end.reason,
    task: ofTask(task.id).index,
    attempt: task.attempt,
    vm: task.vm,
    error: end.error,
  });
}

function json(error: Failure | undefined): string | undefined {
  return error && JSON.stringify(error);
}
