import { FlurryError } from "../../errors/errors.ts";
import type { Artifact, JobEvent, Page, Task, TaskState } from "../api/mod.ts";
import type {
  JobDraft,
  JobQuery,
  JobStore,
  NewJob,
  ResultQuery,
  StoredArtifact,
  StoredJob,
} from "../jobs/ports.ts";
import type { IdempotencyKeys } from "./idempotency.ts";
import { hasEnded, JobChange } from "./job-change.ts";
import type { Ledger } from "./ledger.ts";
import { removeRows } from "./remove-rows.ts";
import { requeue } from "./requeue.ts";
import { insertDraft, SqliteDraft } from "./sqlite-drafts.ts";
import { JobReader } from "./sqlite-job-reader.ts";
import { taskIds } from "./sqlite-job-rows.ts";
import type { JobSteps } from "./sqlite-job-steps.ts";
import { ResultReader } from "./sqlite-results.ts";

export class SqliteJobs implements JobStore {
  readonly #ledger: Ledger;
  readonly #steps: JobSteps;
  readonly #keys: IdempotencyKeys;
  readonly #reader: JobReader;
  readonly #results: ResultReader;

  constructor(ledger: Ledger, steps: JobSteps, keys: IdempotencyKeys) {
    this.#ledger = ledger;
    this.#steps = steps;
    this.#keys = keys;
    this.#reader = new JobReader(ledger.database);
    this.#results = new ResultReader(ledger.database);
  }

  async draft(job: NewJob): Promise<JobDraft> {
    const seq = await this.#ledger.database.write(() => insertDraft(this.#ledger, job), { durable: false });
    const read = (id: string) => this.#reader.get(id);
    return new SqliteDraft({ ledger: this.#ledger, steps: this.#steps, keys: this.#keys, job, seq, read });
  }

  async repeats(owner: string, idempotencyKey: string): Promise<boolean> {
    return this.#keys.find(owner, idempotencyKey) !== undefined;
  }

  async get(id: string): Promise<StoredJob | undefined> {
    return this.#reader.get(id);
  }

  async list(query: JobQuery): Promise<Page<StoredJob>> {
    return this.#reader.list(query);
  }

  async task(id: string, index: number): Promise<Task | undefined> {
    return this.#reader.task(id, index);
  }

  async tasks(
    id: string,
    query: { state?: TaskState | undefined; cursor?: string | undefined; limit: number },
  ): Promise<Page<Task>> {
    return this.#reader.tasks(id, query);
  }

  async results(id: string, query: ResultQuery): ReturnType<JobStore["results"]> {
    return this.#results.results(id, query);
  }

  async artifacts(
    id: string,
    query: { task?: number | undefined; cursor?: string | undefined; limit: number },
  ): Promise<Page<Artifact>> {
    return this.#results.artifacts(id, query);
  }

  async artifact(id: string, task: number, path: string): Promise<StoredArtifact | undefined> {
    return this.#results.artifact(id, task, path);
  }

  async events(id: string, after: number, limit: number): Promise<JobEvent[]> {
    return this.#reader.events(id, after, limit);
  }

  cancel(id: string, reason: string): Promise<StoredJob> {
    return this.#change(id, (job) => {
      const { row } = job;
      if (row.state === "canceling" || hasEnded(row.state)) return;
      row.step = "cancel";
      row.step_until = null;
      job.enter("canceling", reason);
    });
  }

  retry(id: string, index?: number): Promise<StoredJob> {
    return this.#change(id, (job) => {
      assertEnded(job);
      job.row.started_at = null;
      if (index === undefined) this.#retryAll(job);
      else this.#retryOne(job, index);
    });
  }

  async remove(id: string): Promise<void> {
    const { seq, last } = await this.#ledger.change((notes) => {
      const { database, outbox } = this.#ledger;
      const job = JobChange.byId(this.#ledger, notes, id);
      assertEnded(job);
      const { row } = job;
      database.run("INSERT INTO removed (id) VALUES (?)", id);
      database.run(
        "DELETE FROM job_tags WHERE place = ? AND tag IN (SELECT value FROM heads, json_each(tags) WHERE job = ?)",
        row.place ?? undefined,
        row.seq,
      );
      this.#keys.forget(row.seq);
      outbox.forget(id);
      row.phase = "removed";
      row.step = "remove";
      job.save();
      return { seq: row.seq, last: removeRows(database, row.seq) };
    });
    if (!last) this.#steps.start(seq);
  }

  async removed(): Promise<string[]> {
    const rows = this.#ledger.database.all<{ id: string }>("SELECT id FROM removed ORDER BY id");
    return rows.map(({ id }) => id);
  }

  async purged(id: string): Promise<void> {
    await this.#ledger.database.write(() =>
      this.#ledger.database.run("DELETE FROM removed WHERE id = ?", id),
    );
  }

  async load(owner?: string): ReturnType<JobStore["load"]> {
    return this.#reader.load(owner);
  }

  onChange(listener: (id: string) => void): Disposable {
    return this.#ledger.changed.add(listener);
  }

  /** Changes a job and does the first of its steps at once: most jobs need no more. */
  async #change(id: string, change: (job: JobChange) => void): Promise<StoredJob> {
    const { seq, last, stored } = await this.#ledger.change((notes) => {
      const job = JobChange.byId(this.#ledger, notes, id);
      change(job);
      const { step, seq } = job.row;
      job.save();
      const last = step === null || this.#steps.step(notes, JobChange.bySeq(this.#ledger, notes, seq));
      return { seq, last, stored: this.#reader.get(id)! };
    });
    if (!last) this.#steps.start(seq);
    return stored;
  }

  #retryAll(job: JobChange): void {
    const { row } = job;
    if (row.failed + row.canceled === 0) {
      throw new FlurryError("BAD_ARGUMENT", `No task of ${row.id} failed or was canceled`);
    }
    row.step = "retry";
    row.step_until = row.ends;
    job.enter("queued", "Its failed and canceled tasks are tried again");
  }

  #retryOne(job: JobChange, index: number): void {
    const { row } = job;
    const state = this.#reader.task(row.id, index)?.state;
    if (!state) throw new FlurryError("TASK_NOT_FOUND", `${row.id} has no task ${index}`);
    if (state !== "failed" && state !== "canceled") {
      throw new FlurryError("BAD_ARGUMENT", `Task ${index} of ${row.id} has ${state}: it cannot be retried`);
    }
    job.enter("queued", `Task ${index} is tried again`);
    requeue(this.#ledger, job, taskIds(row.seq).first + index, state);
  }
}

function assertEnded({ row }: JobChange): void {
  if (hasEnded(row.state)) return;
  throw new FlurryError("JOB_ACTIVE", `${row.id} is ${row.state}`, {
    hint: "cancel it, or wait for its end",
  });
}
