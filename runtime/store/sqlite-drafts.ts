import { createHash } from "node:crypto";
import { FlurryError } from "../../errors/errors.ts";
import { imageOf, MAX_TASKS } from "../api/mod.ts";
import type { JobDraft, NewJob, StoredJob } from "../jobs/ports.ts";
import { assertDiskSpace } from "./disk-space.ts";
import type { IdempotencyKeys } from "./idempotency.ts";
import { JobChange } from "./job-change.ts";
import type { Ledger, Notes } from "./ledger.ts";
import { taskIds } from "./sqlite-job-rows.ts";
import type { JobSteps } from "./sqlite-job-steps.ts";

/** Most inputs of one transaction, and most characters: others wait for it. */
const BATCH_ROWS = 2000;
const BATCH_CHARACTERS = 4 * 1024 * 1024;

/** Stores the head of a job that nobody sees yet. Returns its number. */
export function insertDraft(ledger: Ledger, job: NewJob): number {
  const { database, clock, outbox } = ledger;
  const webhook = job.webhook && {
    ...job.webhook,
    secret: job.webhook.secret && outbox.seal(job.id, job.webhook.secret),
  };
  const now = clock.now();
  const { seq } = database.get<{ seq: number }>(
    `INSERT INTO jobs (id, phase, owner, family, priority, state, reason, created_at, changed_at)
      VALUES (?, 'draft', ?, ?, ?, 'queued', 'Submitted', ?, ?) RETURNING seq`,
    ...[job.id, job.owner, job.family, job.priority, now, now],
  )!;
  database.run(
    `INSERT INTO heads (job, name, worker_name, worker_version, spec, image, command, retry, timeout_ms, tags,
      webhook, traceparent, env) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
    ...[seq, job.name, job.worker?.name, job.worker?.version, specId(ledger, job), imageOf(job.spec)],
    ...[JSON.stringify(job.spec.command ?? []), JSON.stringify(job.retry), job.timeoutMs],
    ...[JSON.stringify([...new Set(job.tags)]), webhook && JSON.stringify(webhook), job.traceparent],
    JSON.stringify(job.env),
  );
  return seq;
}

/** Equal specs are stored once, however many jobs have them. */
function specId({ database }: Ledger, { spec }: NewJob): number {
  const text = JSON.stringify(spec);
  const hash = createHash("sha256").update(text).digest("hex");
  const known = database.get<{ id: number }>("SELECT id FROM specs WHERE hash = ?", hash);
  if (known) return known.id;
  return database.get<{ id: number }>(
    "INSERT INTO specs (hash, spec) VALUES (?, ?) RETURNING id",
    hash,
    text,
  )!.id;
}

export interface DraftOptions {
  ledger: Ledger;
  steps: JobSteps;
  keys: IdempotencyKeys;
  job: NewJob;
  seq: number;
  read: (id: string) => StoredJob | undefined;
}

export class SqliteDraft implements JobDraft {
  readonly #options: DraftOptions;
  #count = 0;
  #ended = false;

  constructor(options: DraftOptions) {
    this.#options = options;
  }

  async add(inputs: readonly (string | undefined)[]): Promise<void> {
    const first = this.#reserve(inputs.length);
    let at = 0;
    while (at < inputs.length) {
      const end = batchEnd(inputs, at);
      const from = at;
      assertDiskSpace(this.#options.ledger.database);
      await this.#options.ledger.database.write(() => this.#insert(first, inputs, from, end), {
        durable: false,
      });
      at = end;
    }
    this.#count = first + inputs.length;
  }

  /** No rows are needed for them. */
  async addCount(count: number): Promise<void> {
    this.#count = this.#reserve(count) + count;
  }

  async commit(bodyHash: string): Promise<{ stored: StoredJob; replayed: boolean }> {
    this.#assertOpen();
    if (this.#count === 0) throw new FlurryError("BAD_ARGUMENT", "A job has at least one task");
    const { ledger, keys, job, read } = this.#options;
    const result = await ledger.change((notes) => {
      const { owner, idempotencyKey: key } = job;
      const earlier = key === undefined ? undefined : keys.find(owner, key);
      if (earlier && earlier.bodyHash !== bodyHash) throw mismatch(key!);
      if (earlier) return { stored: read(earlier.job)!, replayed: true };
      const change = this.#makeLive(notes);
      if (key !== undefined) keys.add(owner, key, { bodyHash, seq: change.row.seq });
      return { stored: read(job.id)!, replayed: false };
    });
    // The rows of a draft that repeats are removed when it is disposed of.
    if (!result.replayed) this.#ended = true;
    return result;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#options.steps.start(this.#options.seq);
  }

  #makeLive(notes: Notes): JobChange {
    const { ledger, job, seq } = this.#options;
    const { database } = ledger;
    // Of an `add` that failed half-way.
    const { first, last } = taskIds(seq);
    database.run("DELETE FROM inputs WHERE id BETWEEN ? AND ?", first + this.#count, last);
    const change = JobChange.bySeq(ledger, notes, seq);
    const { row } = change;
    if (row.phase !== "draft") throw new FlurryError("INTERNAL", `${job.id} has been committed already`);
    const newest = database.get<{ place: number | null }>(
      "SELECT max(place) AS place FROM jobs INDEXED BY jobs_place WHERE phase = 'live'",
    );
    row.phase = "live";
    row.place = (newest?.place ?? 0) + 1;
    row.total = this.#count;
    row.queued = this.#count;
    row.ready = this.#count;
    row.created_at = change.now;
    row.changed_at = change.now;
    change.event({ type: "job.queued", reason: row.reason });
    change.save();
    for (const tag of new Set(job.tags)) {
      database.run("INSERT INTO job_tags (tag, place, job) VALUES (?, ?, ?)", tag, row.place, seq);
    }
    notes.ready = true;
    return change;
  }

  #insert(first: number, inputs: readonly (string | undefined)[], from: number, end: number): void {
    const { ledger, seq } = this.#options;
    const base = taskIds(seq).first + first;
    for (let at = from; at < end; at += 1) {
      const input = inputs[at];
      if (input === undefined) continue;
      // Replaces what an `add` that failed half-way has left.
      ledger.database.run("INSERT OR REPLACE INTO inputs (id, input) VALUES (?, ?)", base + at, input);
    }
  }

  /** Returns the index of the first of `count` further tasks. */
  #reserve(count: number): number {
    this.#assertOpen();
    if (!Number.isSafeInteger(count) || count < 0 || this.#count + count > MAX_TASKS) {
      throw new FlurryError("BAD_ARGUMENT", `A job has at most ${MAX_TASKS} tasks`);
    }
    return this.#count;
  }

  #assertOpen(): void {
    if (this.#ended) throw new FlurryError("INTERNAL", `The draft of ${this.#options.job.id} has ended`);
  }
}

function batchEnd(inputs: readonly (string | undefined)[], from: number): number {
  let end = from;
  let characters = 0;
  while (end < inputs.length && end - from < BATCH_ROWS && characters < BATCH_CHARACTERS) {
    characters += inputs[end]?.length ?? 0;
    end += 1;
  }
  return end;
}

function mismatch(key: string): FlurryError {
  return new FlurryError(
    "IDEMPOTENCY_MISMATCH",
    `The idempotency key "${key}" was used with another body before`,
    { hint: "take a new key for a new job" },
  );
}
