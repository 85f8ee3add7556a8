import { FlurryError } from "../../errors/errors.ts";
import { type JobHead, type KeyLimits, MAX_INPUT_BYTES, MAX_TASKS, type WorkerSpec } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { Dispatcher } from "./dispatcher.ts";
import type { Store, StoredJob } from "./ports.ts";

export interface JobsOptions {
  store: Store;
  /** Tells how fast tasks end. */
  dispatcher: Pick<Dispatcher, "endedPerSecond">;
  clock: Clock;
  limits?: Partial<JobLimits> | undefined;
}

export interface JobLimits {
  /** Most tasks that wait in the whole gateway. */
  waitingTasks: number;
}

/** The worker that a job means. */
export interface Resolved {
  spec: WorkerSpec;
  /** Absent when the job describes its worker itself. */
  worker?: { name: string; version: number } | undefined;
  family: string;
}

/** Tasks without inputs, or one for each input: any JSON value. */
export type NewTasks = { count: number } | { inputs: AsyncIterable<unknown> | Iterable<unknown> };

/** Who submits, and how. */
export interface Submission {
  /** Id of the key; "" without keys. */
  owner: string;
  limits: KeyLimits;
  idempotencyKey?: string | undefined;
  /** Of what was submitted; asked when all inputs have been read. */
  bodyHash: () => string;
  /** W3C trace context. */
  traceparent?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** What people do with jobs. */
export class Jobs implements AsyncDisposable {
  readonly #options: JobsOptions;

  constructor(options: JobsOptions) {
    this.#options = options;
  }

  /** Goes on with what a process before has not finished: the removal of blobs and logs. */
  async start(): Promise<void> {}

  /**
   * Checks a job without storing anything.
   *
   * @throws FlurryError WORKER_NOT_FOUND, SECRET_NOT_FOUND
   */
  async validate(_head: JobHead): Promise<Resolved> {
    throw new FlurryError("INTERNAL", "Not there yet");
  }

  /**
   * Stores a job and its tasks. Nobody sees it before all inputs have been read.
   *
   * @throws FlurryError WORKER_NOT_FOUND, SECRET_NOT_FOUND; BAD_ARGUMENT and BODY_TOO_LARGE that name the
   * task; LIMIT_REACHED and QUEUE_FULL with `retryAfterSeconds`; IDEMPOTENCY_MISMATCH; ABORTED; whatever the
   * inputs throw
   */
  async submit(
    _head: JobHead,
    _tasks: NewTasks,
    _submission: Submission,
  ): Promise<{ stored: StoredJob; replayed: boolean }> {
    throw new FlurryError("INTERNAL", `Not there yet ${MAX_TASKS} ${MAX_INPUT_BYTES}`);
  }

  /** See JobStore.cancel. @throws FlurryError JOB_NOT_FOUND */
  cancel(id: string, reason: string): Promise<StoredJob> {
    return this.#options.store.jobs.cancel(id, reason);
  }

  /** See JobStore.retry. @throws FlurryError JOB_NOT_FOUND, TASK_NOT_FOUND, JOB_ACTIVE, BAD_ARGUMENT */
  retry(id: string, index?: number): Promise<StoredJob> {
    return this.#options.store.jobs.retry(id, index);
  }

  /** Removes a job that has ended; its blobs and logs go in the background. @throws FlurryError JOB_NOT_FOUND, JOB_ACTIVE */
  async remove(id: string): Promise<void> {
    await this.#options.store.jobs.remove(id);
  }

  /** Waits for what goes on in the background, or stops it; the next start goes on with it. */
  async [Symbol.asyncDispose](): Promise<void> {}
}
