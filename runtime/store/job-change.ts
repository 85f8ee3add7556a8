import { randomBytes } from "node:crypto";
import { FlurryError } from "../../errors/errors.ts";
import type { Failure, JobEvent, JobState, TaskState, WebhookEvent } from "../api/mod.ts";
import type { Ledger, Notes } from "./ledger.ts";
import {
  type HeadRow,
  headColumns,
  type JobRow,
  jobOf,
  type StoredWebhook,
  timeOf,
} from "./sqlite-job-rows.ts";

/** States that a job does not leave by itself. */
const ended: ReadonlySet<JobState> = new Set(["succeeded", "failed", "canceled"]);
const hooked: ReadonlySet<string> = new Set<WebhookEvent>([
  "job.running",
  "job.succeeded",
  "job.failed",
  "job.canceled",
]);

export function hasEnded(state: JobState): boolean {
  return ended.has(state);
}

/** A change of one job within one transaction: read once, written once by `save`. */
export class JobChange {
  readonly row: JobRow;
  readonly now: number;
  readonly #ledger: Ledger;
  readonly #notes: Notes;
  readonly #before: Load;
  readonly #phase: JobRow["phase"];
  readonly #step: JobRow["step"];
  #entered = false;
  #message: WebhookEvent | undefined;

  constructor(ledger: Ledger, notes: Notes, row: JobRow) {
    this.#ledger = ledger;
    this.#notes = notes;
    this.row = row;
    this.now = ledger.clock.now();
    this.#before = loadOf(row);
    this.#phase = row.phase;
    this.#step = row.step;
  }

  static bySeq(ledger: Ledger, notes: Notes, seq: number): JobChange {
    const row = ledger.database.get<JobRow>("SELECT * FROM jobs WHERE seq = ?", seq);
    if (!row) throw new FlurryError("STORE_FAILED", `Job ${seq} is missing in ${ledger.database.file}`);
    return new JobChange(ledger, notes, row);
  }

  /** @throws FlurryError JOB_NOT_FOUND */
  static byId(ledger: Ledger, notes: Notes, id: string): JobChange {
    const row = ledger.database.get<JobRow>("SELECT * FROM jobs WHERE id = ? AND phase = 'live'", id);
    if (!row) throw new FlurryError("JOB_NOT_FOUND", `There is no job ${id}`);
    return new JobChange(ledger, notes, row);
  }

  /** Whether a task that waits may be claimed. */
  get claimable(): boolean {
    return this.row.state === "queued" || this.row.state === "running";
  }

  move(from: TaskState, to: TaskState): void {
    this.row[from] -= 1;
    this.row[to] += 1;
  }

  /** One more task can be claimed at once. */
  addReady(): void {
    if (!this.claimable) return;
    this.row.ready += 1;
    this.#notes.ready = true;
  }

  /** There are blobs that are nobody's any more. */
  leaveBlobs(): void {
    this.#notes.abandoned = true;
  }

  enter(state: JobState, reason: string): void {
    const { row } = this;
    this.#entered = true;
    row.state = state;
    row.reason = reason;
    row.changed_at = this.now;
    if (state === "running") row.started_at ??= this.now;
    row.ended_at = hasEnded(state) ? this.now : null;
    if (!this.claimable) row.ready = 0;
    this.event({ type: `job.${state}`, reason });
    if (hooked.has(`job.${state}`)) this.#message = `job.${state}` as WebhookEvent;
  }

  /** Ends the job with its last task. */
  endIfDone(): void {
    const { row } = this;
    if (row.step !== null || hasEnded(row.state) || row.queued + row.running + row.retrying > 0) return;
    if (row.state === "canceling") this.enter("canceled", row.reason);
    else if (row.failed > 0) this.enter("failed", `${row.failed} of ${row.total} tasks failed`);
    else if (row.canceled > 0) this.enter("canceled", `${row.canceled} of ${row.total} tasks were canceled`);
    else this.enter("succeeded", row.total === 1 ? "The task succeeded" : `All ${row.total} tasks succeeded`);
  }

  event(event: {
    type: JobEvent["type"];
    reason: string;
    task?: number;
    attempt?: number;
    vm?: string | null;
    error?: Failure | undefined;
  }): void {
    this.row.events += 1;
    this.#ledger.database.run(
      "INSERT INTO events (job, id, at, type, reason, task, attempt, vm, error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
      this.row.seq,
      this.row.events,
      this.now,
      event.type,
      event.reason,
      event.task,
      event.attempt,
      event.vm,
      event.error && JSON.stringify(event.error),
    );
  }

  save(): void {
    this.#saveCounts();
    if (this.#entered || this.row.phase !== this.#phase || this.row.step !== this.#step) this.#saveState();
    this.#saveLoad();
    if (this.#message) this.#tellWebhook(this.#message);
    if (this.row.phase !== "draft") this.#notes.jobs.add(this.row.id);
  }

  /** Apart from the state, since most changes are of counts only, and the indexes of states then stay. */
  #saveCounts(): void {
    const { row } = this;
    this.#ledger.database.run(
      `UPDATE jobs SET total = ?, queued = ?, running = ?, retrying = ?, succeeded = ?, failed = ?, canceled = ?,
        fresh = ?, ready = ?, events = ?, ends = ? WHERE seq = ?`,
      ...[row.total, row.queued, row.running, row.retrying, row.succeeded, row.failed, row.canceled],
      ...[row.fresh, row.ready, row.events, row.ends, row.seq],
    );
  }

  #saveState(): void {
    const { row } = this;
    this.#ledger.database.run(
      `UPDATE jobs SET phase = ?, step = ?, step_until = ?, place = ?, state = ?, reason = ?, created_at = ?,
        changed_at = ?, started_at = ?, ended_at = ? WHERE seq = ?`,
      ...[row.phase, row.step, row.step_until, row.place, row.state, row.reason, row.created_at],
      ...[row.changed_at, row.started_at, row.ended_at, row.seq],
    );
  }

  #saveLoad(): void {
    const after = loadOf(this.row);
    const before = this.#before;
    const jobs = after.jobs - before.jobs;
    const waiting = after.waiting - before.waiting;
    const running = after.running - before.running;
    if (jobs === 0 && waiting === 0 && running === 0) return;
    this.#ledger.database.run(
      `INSERT INTO loads (owner, active_jobs, waiting_tasks, running_tasks) VALUES (?, ?, ?, ?)
        ON CONFLICT (owner) DO UPDATE SET active_jobs = active_jobs + excluded.active_jobs,
        waiting_tasks = waiting_tasks + excluded.waiting_tasks,
        running_tasks = running_tasks + excluded.running_tasks`,
      ...[this.row.owner, jobs, waiting, running],
    );
  }

  #tellWebhook(type: WebhookEvent): void {
    const { database, outbox } = this.#ledger;
    const head = database.get<HeadRow>(`SELECT ${headColumns} FROM heads WHERE job = ?`, this.row.seq)!;
    if (head.webhook === null) return;
    const { url, secret, events } = JSON.parse(head.webhook) as StoredWebhook;
    if (!events.includes(type)) return;
    const id = `msg_${randomBytes(12).toString("hex")}`;
    const data = jobOf({ ...this.row, ...head });
    const body = JSON.stringify({ id, type, timestamp: timeOf(this.now), data });
    outbox.enqueue({ id, job: this.row.id, event: type, url, secret, body });
    this.#notes.deliveries = true;
  }
}

interface Load {
  jobs: number;
  waiting: number;
  running: number;
}

function loadOf(row: JobRow): Load {
  if (row.phase !== "live") return { jobs: 0, waiting: 0, running: 0 };
  return {
    jobs: hasEnded(row.state) ? 0 : 1,
    waiting: row.queued + row.retrying,
    running: row.running,
  };
}
