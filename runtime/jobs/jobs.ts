import { randomBytes } from "node:crypto";
import { getLogger } from "@logtape/logtape";
import { FlurryError } from "../../errors/errors.ts";
import { type JobHead, type KeyLimits, MAX_INPUT_BYTES, MAX_TASKS, type WorkerSpec } from "../api/mod.ts";
import { throwIfAborted } from "../vm/qemu-process.ts";
import type { Dispatcher } from "./dispatcher.ts";
import { familyOf } from "./family.ts";
import { type Incoming, Intake } from "./intake.ts";
import type { JobDraft, NewJob, Store, StoredJob } from "./ports.ts";

export interface JobsOptions {
  store: Store;
  /** Tells how fast tasks end. */
  dispatcher: Pick<Dispatcher, "endedPerSecond">;
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

/** Inputs that are stored at once: so many, or so many characters. */
const BATCH_INPUTS = 500;
const BATCH_CHARACTERS = 1024 * 1024;
const DEFAULT_LIMITS: JobLimits = { waitingTasks: 5_000_000 };
const logger = getLogger(["flurry", "jobs"]);

/** What people do with jobs. */
export class Jobs implements AsyncDisposable {
  readonly #store: Store;
  readonly #intake: Intake;
  #purging: Promise<void> = Promise.resolve();
  #ended = false;

  constructor({ store, dispatcher, limits }: JobsOptions) {
    this.#store = store;
    const { waitingTasks } = { ...DEFAULT_LIMITS, ...limits };
    const endedPerSecond = () => dispatcher.endedPerSecond;
    this.#intake = new Intake({ jobs: store.jobs, waitingTasks, endedPerSecond });
  }

  /** Goes on with what a process before has not finished: the removal of blobs and logs. */
  start(): void {
    this.#purge();
  }

  /**
   * Checks a job without storing anything.
   *
   * @throws FlurryError WORKER_NOT_FOUND, SECRET_NOT_FOUND
   */
  async validate(head: JobHead, owner: string): Promise<Resolved> {
    const resolved = await this.resolve(head.worker);
    for (const [variable, name] of Object.entries(resolved.spec.secrets)) {
      if ((await this.#store.secrets.value(name, owner)) !== undefined) continue;
      throw new FlurryError("SECRET_NOT_FOUND", `There is no secret "${name}" for ${variable}`, {
        hint: `store it first, for your key: flurry secret put ${name}, or PUT /v1/secrets/${name}`,
      });
    }
    return resolved;
  }

  /** @throws FlurryError WORKER_NOT_FOUND */
  async resolve(worker: JobHead["worker"]): Promise<Resolved> {
    if (typeof worker !== "string") return { spec: worker, family: familyOf(worker) };
    const [name = "", version] = worker.split("@");
    const found = await this.#store.workers.get(name, version === undefined ? undefined : Number(version));
    if (!found) {
      throw new FlurryError("WORKER_NOT_FOUND", `There is no worker "${worker}"`, {
        hint: `deploy it first: flurry worker put ${name}, or PUT /v1/workers/${name}`,
      });
    }
    const { spec } = found;
    return { spec, worker: { name, version: found.version }, family: familyOf(spec) };
  }

  /**
   * Stores a job and its tasks. Nobody sees it before all inputs have been read.
   *
   * @throws FlurryError WORKER_NOT_FOUND, SECRET_NOT_FOUND; BAD_ARGUMENT and BODY_TOO_LARGE that name the
   * task; LIMIT_REACHED and QUEUE_FULL with `retryAfterSeconds`; IDEMPOTENCY_MISMATCH; ABORTED; whatever the
   * inputs throw
   */
  async submit(
    head: JobHead,
    tasks: NewTasks,
    submission: Submission,
  ): Promise<{ stored: StoredJob; replayed: boolean }> {
    const { owner, limits, idempotencyKey, bodyHash, signal } = submission;
    throwIfAborted(signal);
    const repeats = idempotencyKey !== undefined && (await this.#store.jobs.repeats(owner, idempotencyKey));
    const resolved = await this.validate(head, submission.owner);
    // A repetition adds nothing, so no limit is in its way.
    using incoming = repeats ? undefined : await this.#intake.enter(owner, limits);
    await using draft = await this.#store.jobs.draft(newJob(head, resolved, submission));
    if ("count" in tasks) {
      await incoming?.add(tasks.count);
      await draft.addCount(tasks.count);
    } else {
      await addInputs(draft, tasks.inputs, incoming, signal);
    }
    throwIfAborted(signal);
    return await draft.commit(bodyHash());
  }

  /** See JobStore.cancel. @throws FlurryError JOB_NOT_FOUND */
  cancel(id: string, reason: string): Promise<StoredJob> {
    return this.#store.jobs.cancel(id, reason);
  }

  /**
   * See JobStore.retry. The tasks count as submitted ones do, to the key that submitted the job.
   *
   * @throws FlurryError JOB_NOT_FOUND, TASK_NOT_FOUND, JOB_ACTIVE, BAD_ARGUMENT; LIMIT_REACHED and QUEUE_FULL
   * with `retryAfterSeconds`
   */
  async retry(id: string, index?: number): Promise<StoredJob> {
    const { jobs, keys } = this.#store;
    const stored = await jobs.get(id);
    const tasks = stored && isOver(stored) ? retriable(stored, index) : 0;
    // What cannot be retried at all is refused for that, whatever the limits are.
    if (!stored || tasks === 0) return jobs.retry(id, index);
    const limits = (await keys.find(stored.owner))?.limits ?? {};
    using incoming = await this.#intake.enter(stored.owner, limits);
    await incoming.add(tasks);
    return await jobs.retry(id, index);
  }

  /**
   * Removes a job that has ended; its blobs and logs go in the background.
   *
   * @throws FlurryError JOB_NOT_FOUND, JOB_ACTIVE
   */
  async remove(id: string): Promise<void> {
    await this.#store.jobs.remove(id);
    this.#purge();
  }

  /** Stops what goes on in the background; the next start goes on with it. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#ended = true;
    await this.#purging;
  }

  #purge(): void {
    this.#purging = this.#purging.then(() => this.#purgeRemoved());
  }

  /** Removes what is left of removed jobs; what fails is tried again with the next one, or the next start. */
  async #purgeRemoved(): Promise<void> {
    const { jobs, blobs, logs } = this.#store;
    try {
      for (const id of this.#ended ? [] : await jobs.removed()) {
        if (this.#ended) return;
        await blobs.removeAll(id);
        await logs.remove(id);
        await jobs.purged(id);
      }
    } catch (error) {
      logger.warn("Cannot remove what is left of removed jobs: {error}", { error });
    }
  }
}

function isOver({ job }: StoredJob): boolean {
  return job.state === "succeeded" || job.state === "failed" || job.state === "canceled";
}

/** Tasks that a retry queues again. */
function retriable({ job: { tasks } }: StoredJob, index: number | undefined): number {
  const all = tasks.failed + tasks.canceled;
  return index === undefined ? all : Math.min(1, all);
}

function newJob(head: JobHead, { spec, worker, family }: Resolved, submission: Submission): NewJob {
  const { owner, traceparent, idempotencyKey } = submission;
  const { name, priority, env, tags, webhook } = head;
  const { retry = spec.retry, timeoutMs = spec.timeoutMs } = head;
  const id = `job_${randomBytes(12).toString("hex")}`;
  return {
    ...{ id, owner, name, worker, spec, family, priority, retry, timeoutMs },
    ...{ env, tags, webhook, traceparent, idempotencyKey },
  };
}

async function addInputs(
  draft: JobDraft,
  inputs: AsyncIterable<unknown> | Iterable<unknown>,
  incoming: Incoming | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  let index = 0;
  let batch: string[] = [];
  let characters = 0;
  const store = async () => {
    throwIfAborted(signal);
    await incoming?.add(batch.length);
    await draft.add(batch);
    batch = [];
    characters = 0;
  };
  for await (const input of inputs) {
    const json = inputJson(input, index);
    index += 1;
    batch.push(json);
    characters += json.length;
    if (batch.length >= BATCH_INPUTS || characters >= BATCH_CHARACTERS) await store();
  }
  if (index === 0) throw new FlurryError("BAD_ARGUMENT", "The job has no inputs, and so no tasks");
  if (batch.length > 0) await store();
}

/** The input of task `index` in JSON. */
function inputJson(input: unknown, index: number): string {
  if (index >= MAX_TASKS) {
    throw new FlurryError("BODY_TOO_LARGE", `The job has more than ${MAX_TASKS} inputs`, {
      hint: "submit them as several jobs",
    });
  }
  const json = JSON.stringify(input) as string | undefined;
  if (json === undefined) throw new FlurryError("BAD_ARGUMENT", `Input of task ${index} is no JSON value`);
  const bytes = Buffer.byteLength(json);
  if (bytes <= MAX_INPUT_BYTES) return json;
  throw new FlurryError(
    "BODY_TOO_LARGE",
    `Input of task ${index} has ${bytes} bytes as JSON; the most is ${MAX_INPUT_BYTES}`,
    { hint: "give large inputs to the tasks as files of the worker, or by a URL" },
  );
}
