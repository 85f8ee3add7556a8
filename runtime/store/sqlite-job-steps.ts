import { setTimeout as wait } from "node:timers/promises";
import { getLogger } from "@logtape/logtape";
import { codeOf } from "../../errors/errors.ts";
import { endCanceled } from "./attempt-ends.ts";
import type { IdempotencyKeys } from "./idempotency.ts";
import { JobChange } from "./job-change.ts";
import type { Ledger, Notes } from "./ledger.ts";
import { removeRows } from "./remove-rows.ts";
import { requeue } from "./requeue.ts";
import { taskIds } from "./sqlite-job-rows.ts";

/** Tasks that one transaction changes: others wait for it. */
const BATCH = 1000;
/** Waits before a step that failed is tried again. */
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 60_000;

/**
 * Does in steps what concerns many tasks at once: cancels, queues again, removes. What is under way is in
 * the job's row, so that it goes on after a crash.
 */
export class JobSteps implements AsyncDisposable {
  readonly #ledger: Ledger;
  readonly #keys: IdempotencyKeys;
  readonly #closing = new AbortController();
  readonly #waiting = new Set<number>();
  #running: Promise<void> | undefined;

  constructor(ledger: Ledger, keys: IdempotencyKeys) {
    this.#ledger = ledger;
    this.#keys = keys;
  }

  /** Goes on with what is under way; all that is a draft now is one that a crash has left. */
  resume(): void {
    const { database } = this.#ledger;
    const left = database.all<{ seq: number }>(
      `SELECT seq FROM jobs INDEXED BY jobs_step WHERE step IS NOT NULL
        UNION SELECT seq FROM jobs INDEXED BY jobs_draft WHERE phase = 'draft'`,
    );
    for (const { seq } of left) this.start(seq);
  }

  /** Does all steps of a job (of a draft: removes it), in the background. */
  start(seq: number): void {
    this.#waiting.add(seq);
    this.#running ??= this.#run();
  }

  /** One step, within a transaction. Returns whether it was the last. */
  step(notes: Notes, job: JobChange): boolean {
    switch (job.row.step) {
      case "cancel":
        return this.#cancel(job);
      case "retry":
        return this.#retry(job);
      case "remove":
        return this.#remove(notes, job);
      case null:
        return true;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#closing;
    let waitMs = FIRST_WAIT_MS;
    for (const seq of this.#waiting) {
      if (signal.aborted) break;
      // Added again at the end unless this was the last one: jobs take turns.
      this.#waiting.delete(seq);
      try {
        const last = await this.#ledger.change((notes) => this.#stepOf(notes, seq));
        if (!last) this.#waiting.add(seq);
        waitMs = FIRST_WAIT_MS;
      } catch (error) {
        this.#waiting.add(seq);
        getLogger(["flurry", "store"]).error("A step of job {seq} failed: {error}", { seq, error });
        await wait(waitMs, undefined, { signal }).catch(ignoreAbort);
        waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
      }
    }
    this.#running = undefined;
  }

  #stepOf(notes: Notes, seq: number): boolean {
    if (!this.#ledger.database.get("SELECT 1 FROM jobs WHERE seq = ?", seq)) return true;
    const job = JobChange.bySeq(this.#ledger, notes, seq);
    if (job.row.phase === "draft") {
      job.row.phase = "removed";
      job.row.step = "remove";
    }
    return this.step(notes, job);
  }

  #cancel(job: JobChange): boolean {
    const { row } = job;
    const { database } = this.#ledger;
    let left = BATCH;
    for (const state of ["queued", "retrying"] as const) {
      const tasks = database.all<{ id: number; attempt: number; vm: string | null }>(
        "SELECT id, attempt, vm FROM tasks INDEXED BY tasks_state WHERE job = ? AND state = ? LIMIT ?",
        ...[row.seq, state, left],
      );
      for (const task of tasks) endCanceled(this.#ledger, job, { ...task, state }, row.reason);
      left -= tasks.length;
    }
    for (; left > 0 && row.fresh < row.total; left -= 1) this.#cancelFresh(job);
    return this.#stepped(job, left > 0);
  }

  #cancelFresh(job: JobChange): void {
    const { row, now } = job;
    const index = row.fresh;
    row.fresh += 1;
    row.ends += 1;
    this.#ledger.database.run(
      `INSERT INTO tasks (id, job, state, reason, ended, changed_at, ended_at)
        VALUES (?, ?, 'canceled', ?, ?, ?, ?)`,
      ...[taskIds(row.seq).first + index, row.seq, row.reason, row.ends, now, now],
    );
    job.move("queued", "canceled");
    job.event({ type: "task.canceled", reason: row.reason, task: index, attempt: 0 });
  }

  #retry(job: JobChange): boolean {
    const { row } = job;
    let left = BATCH;
    for (const state of ["failed", "canceled"] as const) {
      const tasks = this.#ledger.database.all<{ id: number }>(
        `SELECT id FROM tasks INDEXED BY tasks_state WHERE job = ? AND state = ? AND ended <= ? LIMIT ?`,
        ...[row.seq, state, row.step_until, left],
      );
      for (const { id } of tasks) requeue(this.#ledger, job, id, state);
      left -= tasks.length;
    }
    return this.#stepped(job, left > 0);
  }

  #stepped(job: JobChange, last: boolean): boolean {
    if (last) {
      job.row.step = null;
      job.row.step_until = null;
      job.endIfDone();
    }
    job.save();
    return last;
  }

  #remove(notes: Notes, { row }: JobChange): boolean {
    const { database, outbox } = this.#ledger;
    database.run("UPDATE jobs SET phase = 'removed', step = 'remove' WHERE seq = ?", row.seq);
    notes.jobs.add(row.id);
    if (!removeRows(database, row.seq)) return false;
    this.#keys.forget(row.seq);
    outbox.forget(row.id);
    return true;
  }
}

function ignoreAbort(error: unknown): void {
  if (codeOf(error) !== "ABORT_ERR") throw error;
}
