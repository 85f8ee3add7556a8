import type {
  Artifact,
  Delivery,
  Failure,
  HostEntry,
  Job,
  JobEvent,
  JobState,
  Key,
  KeyCreate,
  KeyLimits,
  LogChunk,
  Page,
  Retry,
  Secret,
  SecretPut,
  SetAside,
  Task,
  TaskResult,
  TaskState,
  WebhookEvent,
  WorkerSpec,
  WorkerState,
  WorkerVersion,
} from "../api/mod.ts";

/**
 * Everything that the gateway keeps. One adapter is embedded (runtime/store: SQLite and files); each has
 * to pass tests/support/store-conformance.ts.
 *
 * Whatever a method has returned is durable, but for logs. A store that fails throws FlurryError NO_SPACE or
 * STORE_FAILED, and has changed nothing.
 */
export interface Store extends AsyncDisposable {
  jobs: JobStore;
  queue: Queue;
  blobs: BlobStore;
  logs: LogStore;
  workers: WorkerStore;
  keys: KeyStore;
  secrets: SecretStore;
  deliveries: DeliveryStore;
  hosts: HostRegistry;
  receipts: ReceiptStore;
}

/** A job to be. */
export interface NewJob {
  id: string;
  /** Key that submitted it; "" without keys. */
  owner: string;
  name?: string | undefined;
  /** As deployed; absent when the job describes its worker itself. */
  worker?: { name: string; version: number } | undefined;
  spec: WorkerSpec;
  /** What the parent is made of: tasks of the same family fork from the same one. See `familyOf`. */
  family: string;
  priority: number;
  retry: Retry;
  timeoutMs?: number | undefined;
  env: Record<string, string>;
  tags: readonly string[];
  webhook?: { url: string; secret?: string | undefined; events: readonly WebhookEvent[] } | undefined;
  /** W3C trace context of the submission. */
  traceparent?: string | undefined;
  idempotencyKey?: string | undefined;
}

/** A stored job with what is not shown. */
export interface StoredJob {
  job: Job;
  owner: string;
  family: string;
}

/**
 * A job whose tasks are still arriving: nobody sees it, and it is gone if it is not committed (also
 * after a crash).
 */
export interface JobDraft extends AsyncDisposable {
  /** Adds tasks, one for each input in JSON; undefined for tasks without an input. */
  add(inputs: readonly (string | undefined)[]): Promise<void>;
  /** Adds `count` tasks without input, in steps that leave time for others. */
  addCount(count: number): Promise<void>;
  /**
   * Makes the job visible and its tasks ready, in one step.
   *
   * @param bodyHash - of what was submitted, to tell a repetition from another body with the same key
   * @returns the job; with `replayed` the earlier one of the same idempotency key (kept 24 h), and this
   * draft is gone
   * @throws FlurryError IDEMPOTENCY_MISMATCH when that one had another body
   */
  commit(bodyHash: string): Promise<{ stored: StoredJob; replayed: boolean }>;
}

export interface JobQuery {
  /** Only those of this key. */
  owner?: string | undefined;
  state?: JobState | undefined;
  tag?: string | undefined;
  cursor?: string | undefined;
  limit: number;
}

/** Where a list of results goes on. */
export interface ResultQuery {
  /** index: as submitted, up to the first that has not ended; completion: as they ended. */
  order: "index" | "completion";
  /** index: the first one's; completion: `ended` of the last one before. Or `next` of the page before. @default from the first */
  after?: number | undefined;
  limit: number;
}

export interface StoredArtifact {
  artifact: Artifact;
  /** Key of its content in the BlobStore. */
  blob: string;
}

export interface JobStore {
  draft(job: NewJob): Promise<JobDraft>;
  /** Whether this key has submitted a job with this idempotency key (within 24 h): limits are not for a repetition. */
  repeats(owner: string, idempotencyKey: string): Promise<boolean>;
  get(id: string): Promise<StoredJob | undefined>;
  /** Newest first. */
  list(query: JobQuery): Promise<Page<StoredJob>>;
  task(id: string, index: number): Promise<Task | undefined>;
  tasks(
    id: string,
    query: { state?: TaskState | undefined; cursor?: string | undefined; limit: number },
  ): Promise<Page<Task>>;
  /** `next` is where to go on; it is there also when nothing more has ended yet. */
  results(id: string, query: ResultQuery): Promise<{ items: TaskResult[]; next: number }>;
  artifacts(
    id: string,
    query: { task?: number | undefined; cursor?: string | undefined; limit: number },
  ): Promise<Page<Artifact>>;
  artifact(id: string, task: number, path: string): Promise<StoredArtifact | undefined>;
  /** Events with an id above `after`, oldest first. */
  events(id: string, after: number, limit: number): Promise<JobEvent[]>;
  /**
   * Cancels a job: nothing of it is claimed any more, tasks that wait are canceled (in steps), running ones
   * are the dispatcher's to abort. Done again, it changes nothing. A job that has ended stays as it is.
   */
  cancel(id: string, reason: string): Promise<StoredJob>;
  /**
   * Queues failed and canceled tasks again, with all attempts, or the one of `index`.
   *
   * @throws FlurryError JOB_ACTIVE unless the job has ended; BAD_ARGUMENT when no task can be retried
   */
  retry(id: string, index?: number): Promise<StoredJob>;
  /**
   * Removes a job and all that belongs to it but blobs and logs. From its return on nobody sees the job;
   * rows go in steps, also after a crash.
   *
   * @throws FlurryError JOB_ACTIVE unless the job has ended
   */
  remove(id: string): Promise<void>;
  /** Jobs that were removed and whose blobs and logs may still be there; `purged` ends it. */
  removed(): Promise<string[]>;
  purged(id: string): Promise<void>;
  /** What this key (all keys without one) has now. */
  load(owner?: string): Promise<{ activeJobs: number; waitingTasks: number; runningTasks: number }>;
  /** Calls back after each change of a job, its tasks or its events. */
  onChange(listener: (id: string) => void): Disposable;
}

/** Tasks of one key with one priority: first submitted, first served. */
export interface Lane {
  owner: string;
  priority: number;
}

/** A task that one runtime holds for a while, and all that it needs to know. */
export interface Claim {
  /** Names this attempt; nothing is recorded but with it. */
  token: string;
  job: string;
  index: number;
  /** Tasks of the job. */
  count: number;
  /** Number of this attempt, from 1. */
  attempt: number;
  /** How often the infrastructure has failed this task. */
  infrastructureFailures: number;
  /**
   * Milliseconds since the task was queued, by the wall clock; absent when it waited for its turn to be tried
   * again before it waited to be taken.
   */
  waitedMs?: number | undefined;
  owner: string;
  family: string;
  worker?: { name: string; version: number } | undefined;
  spec: WorkerSpec;
  env: Record<string, string>;
  retry: Retry;
  timeoutMs?: number | undefined;
  /** JSON. */
  input?: string | undefined;
  traceparent?: string | undefined;
}

/** What an attempt left behind. */
export interface AttemptResult {
  exitCode?: number | undefined;
  signal?: string | undefined;
  error?: Failure | undefined;
  /** Of a module, as JSON. */
  value?: string | undefined;
  stdout: string;
  stdoutTruncated: boolean;
  artifacts: readonly { path: string; size: number; mode: number; sha256: string; blob: string }[];
}

/** How an attempt ends: `nextStep` decides it. */
export type AttemptEnd =
  | { state: "succeeded" | "failed"; reason: string; result: AttemptResult }
  /** The task failed and is tried again after `delayMs`. */
  | { state: "retrying"; reason: string; error?: Failure | undefined; delayMs: number }
  /** It was not the task's fault: the attempt does not count. With an error the infrastructure has failed it once more. */
  | { state: "queued"; reason: string; error?: Failure | undefined; delayMs: number }
  | { state: "canceled"; reason: string };

/**
 * Tasks that wait, and leases on those that run. Times are monotonic: a clock that jumps changes
 * nothing. When an embedded store is opened, all leases of before are void and all waits are over.
 */
export interface Queue {
  /** Lanes that have a task ready now, other than those of blocked families and owners. */
  lanes(blocked: Blocked): Promise<Lane[]>;
  /** Takes the first ready task of a lane; undefined if there is none. The job is running from then on. */
  claim(lane: Lane, options: { blocked: Blocked; host: string; leaseMs: number }): Promise<Claim | undefined>;
  /** Prolongs leases. Returns the tokens that are no longer held: their attempts are to be given up. */
  renew(tokens: readonly string[], leaseMs: number): Promise<string[]>;
  /** Notes the child that an attempt runs in. */
  started(token: string, vm: string): Promise<void>;
  /**
   * Ends an attempt: task, counts, job, events, artifacts and webhook deliveries in one transaction.
   * `stale` when the lease is no longer held; nothing has changed then. In a job that is being canceled
   * a task that would wait again is canceled instead.
   */
  finish(token: string, end: AttemptEnd): Promise<"recorded" | "stale">;
  /** Queues tasks again whose lease has run out. Returns their tokens. */
  expire(): Promise<string[]>;
  /**
   * Attempts whose blobs may still be there and are nobody's, at most so many at a time: their leases were void
   * when the store was opened, or their tasks are tried again after a retry of the job.
   */
  abandoned(): Promise<{ job: string; index: number; token: string }[]>;
  /** Nothing is left of these attempts: `abandoned` names them no longer. */
  cleared(tokens: readonly string[]): Promise<void>;
  /** Calls back when `abandoned` names more. */
  onAbandoned(listener: () => void): Disposable;
  /** Milliseconds until a waiting task is ready or a lease runs out; undefined if neither will. */
  nextMs(): Promise<number | undefined>;
  /** Calls back when a task may have become ready. */
  onReady(listener: () => void): Disposable;
}

/** What is not to be claimed for now. */
export interface Blocked {
  families: ReadonlySet<string>;
  owners: ReadonlySet<string>;
}

/**
 * Large contents by key. A key is made of segments `[A-Za-z0-9_.-]+` with `/` between, none of them `.` or
 * `..`. Where there is a blob `KEY` there is none below `KEY/`.
 */
export interface BlobStore {
  /**
   * Stores a content; it is there completely or not at all.
   *
   * @throws FlurryError NO_SPACE, ABORTED; whatever the source throws
   */
  put(
    key: string,
    source: AsyncIterable<Uint8Array>,
    signal?: AbortSignal,
  ): Promise<{ size: number; sha256: string }>;
  /**
   * Bytes `start` to before `end`; undefined if there is no such blob. The stream has to be read to its end
   * or canceled.
   */
  get(key: string, range?: { start: number; end: number }): Promise<ReadableStream<Uint8Array> | undefined>;
  /** Removes all blobs whose key is `prefix` or begins with `prefix/`. */
  removeAll(prefix: string): Promise<void>;
}

export interface NewLogChunk {
  task: number;
  attempt: number;
  stream: LogChunk["stream"];
  text: string;
}

/** What was appended outlives the gateway, however that ends; a crash of the machine may take the last of it. */
export interface LogStore {
  append(job: string, chunks: readonly NewLogChunk[]): Promise<void>;
  /** Chunks with an id above `after`, oldest first. */
  read(job: string, query: { task?: number | undefined; after: number; limit: number }): Promise<LogChunk[]>;
  remove(job: string): Promise<void>;
  /** Calls back after each append. */
  onAppend(listener: (job: string) => void): Disposable;
}

/** What a child has proven, as JSON text. */
export interface NewReceipt {
  vm: string;
  payload: string;
}

export interface StoredReceipt extends NewReceipt {
  /** Ed25519 over the payload, in base64, and the key that it is to be checked with, as PEM. */
  signature: string;
  publicKey: string;
}

/** Receipts of the newest children, 100,000 at least. As of logs, the last may be lost with the machine. */
export interface ReceiptStore {
  /** Signs and keeps them. */
  add(receipts: readonly NewReceipt[]): Promise<void>;
  find(vm: string): Promise<StoredReceipt | undefined>;
}

export interface StoredWorker extends WorkerVersion {
  /**
   * Id of the key that deployed it; "" where there were no keys. Undefined when a Flurry that did not note
   * it has stored it.
   */
  owner: string | undefined;
}

export interface WorkerStore {
  /**
   * Stores a new version and makes it the current one, unless the current one is equal.
   *
   * @param owner - id of the key that deploys it; "" where there are no keys. To another one it is not equal
   */
  put(name: string, spec: WorkerSpec, owner: string): Promise<{ worker: StoredWorker; created: boolean }>;
  /** @param version - the current one by default */
  get(name: string, version?: number): Promise<StoredWorker | undefined>;
  /** Current versions by name. */
  list(query: { cursor?: string | undefined; limit: number }): Promise<Page<StoredWorker>>;
  /** Newest first. */
  versions(name: string, query: { cursor?: string | undefined; limit: number }): Promise<Page<StoredWorker>>;
  /** It stays its owner's. @throws FlurryError WORKER_NOT_FOUND */
  setCurrent(name: string, version: number): Promise<StoredWorker>;
  /** Jobs of it go on. False if there is none. */
  remove(name: string): Promise<boolean>;
}

/** State of a family's parent on this host, for those who look at workers. Not stored. */
export interface Readiness {
  state: WorkerState;
  step?: string | undefined;
  error?: Failure | undefined;
}

export interface StoredKey extends Key {
  /** SHA-256 of the key's secret part, in hex. */
  hash: string;
}

export interface KeyStore {
  create(key: KeyCreate & { id: string; hash: string; limits: KeyLimits }): Promise<Key>;
  find(id: string): Promise<StoredKey | undefined>;
  list(): Promise<Key[]>;
  remove(id: string): Promise<boolean>;
}

/** Values are encrypted at rest. */
export interface SecretStore {
  put(name: string, secret: SecretPut): Promise<Secret>;
  /**
   * The value, or undefined if there is none, also when it is for other keys alone.
   *
   * @param owner - id of the key whose job or worker wants it; "" where there are no keys: everything is
   * for it. Undefined when that key is not known: only what is for all keys is for it
   * @throws FlurryError STORE_FAILED when it cannot be decrypted, as with another key file
   */
  value(name: string, owner: string | undefined): Promise<string | undefined>;
  list(): Promise<Secret[]>;
  remove(name: string): Promise<boolean>;
}

/** A delivery that is due. */
export interface DueDelivery {
  id: string;
  job: string;
  event: WebhookEvent;
  url: string;
  secret?: string | undefined;
  /** Attempts so far. */
  attempts: number;
  /** The message, made when the event happened. */
  body: string;
}

export interface DeliveryStore {
  /**
   * Deliveries that are due and that nobody has taken. They are the caller's until `attempted` or a restart.
   *
   * @param perReceiver - most that may be taken at the same time of those to one scheme, host and port; the
   * others to it are passed by. @default Infinity
   */
  takeDue(limit: number, perReceiver?: number): Promise<DueDelivery[]>;
  /** Notes how an attempt went; without `retryInMs` it was the last one. */
  attempted(
    id: string,
    attempt: {
      status?: number | undefined;
      error?: string | undefined;
      ms: number;
      ok: boolean;
      retryInMs?: number | undefined;
    },
  ): Promise<void>;
  list(job: string): Promise<Delivery[]>;
  /** Until `takeDue` gives something; undefined if it does not before something else happens. */
  nextMs(perReceiver?: number): Promise<number | undefined>;
  onDue(listener: () => void): Disposable;
}

/** Hosts that run children, what they hold, and what has been set aside. */
export interface HostRegistry {
  register(host: Pick<HostEntry, "id" | "name" | "accel" | "cores" | "memoryBytes" | "slots">): Promise<void>;
  heartbeat(id: string, running: number): Promise<void>;
  leave(id: string): Promise<void>;
  list(): Promise<HostEntry[]>;
  setAside(host: string, entry: SetAside): Promise<void>;
  /** Back in use. */
  restore(host: string, kind: SetAside["kind"], id: string): Promise<void>;
}
