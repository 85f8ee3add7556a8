import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FlurryClient, type Job } from "../runtime/client/mod.ts";
import { openGateway } from "../runtime/gateway/open.ts";
import type { Attempt, AttemptIo, TaskRuntime } from "../runtime/jobs/task-runtime.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import { VmTaskRuntime } from "../runtime/workers/vm-task-runtime.ts";

export interface JobBenchOptions {
  tasks: number;
  onProgress?: ((stage: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Times in milliseconds. */
export interface JobBenchResult {
  accel: string;
  cores: number;
  /** Children at the same time. */
  slots: number;
  tasks: number;
  failed: number;
  seconds: number;
  tasksPerSecond: number;
  /** From the submission of the job until its reader is told of each task's end. */
  submitToResultMs: Distribution;
  /** Where a task's time goes. */
  steps: {
    /** From the submission to the start of its fork: the tasks before it, mostly. */
    waitMs: Distribution;
    /** To running CPUs. */
    forkMs: Distribution;
    /** To the proven identity. */
    identifyMs: Distribution;
    /** The command, what it leaves, and the end of its child. */
    runMs: Distribution;
    /** Until the result is in the store and its reader has been told. */
    recordMs: Distribution;
  };
}

interface Times {
  beganAt: number;
  runningAt: number;
  identifiedAt: number;
  endedAt: number;
}

/** Runs a job of short tasks through real children, from the submission over HTTP to the last result. */
export async function benchJob(options: JobBenchOptions): Promise<JobBenchResult> {
  const { tasks, onProgress, signal } = options;
  const dir = await mkdtemp(join(tmpdir(), "flurry-bench-"));
  await using _dir = { [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
  let runtime: TimedRuntime | undefined;
  await using gateway = await openGateway({
    dir,
    listen: { hostname: "127.0.0.1", port: 0 },
    runtime: async () => {
      runtime = new TimedRuntime(await VmTaskRuntime.open({ signal }));
      return runtime;
    },
  });
  const client = new FlurryClient({ url: gateway.url, signal });
  const submit = (count: number) =>
    client.jobs.submit({ worker: { image: "base", command: ["true"] }, tasks: { count } });
  onProgress?.("making the parent ready");
  const first = await client.jobs.wait((await submit(1)).job.id);
  if (first.state !== "succeeded") throw new Error(`The first task has ${first.state}: ${first.reason}`);
  runtime!.times.clear();
  onProgress?.(`${tasks} tasks in forked VMs`);
  const submittedAt = Date.now();
  const { job } = await submit(tasks);
  const told = new Map<number, number>();
  const done = await client.jobs.wait(job.id, {
    onEvent: ({ type, task = 0 }) => {
      if (type !== "task.succeeded" && type !== "task.failed") return;
      told.set(task, Date.now());
      if (told.size % 20 === 0) onProgress?.(`${told.size} of ${tasks} tasks have ended`);
    },
  });
  return figures(done, runtime!, told, submittedAt);
}

function figures(
  job: Job,
  { times, slots, cores, accel = "unknown" }: TimedRuntime,
  told: ReadonlyMap<number, number>,
  submittedAt: number,
): JobBenchResult {
  const all = [...told].flatMap(([index, toldAt]) => {
    const own = times.get(index);
    return own ? [{ ...own, toldAt }] : [];
  });
  const seconds = (Math.max(...told.values()) - submittedAt) / 1000;
  const spread = (of: (each: Times & { toldAt: number }) => number) => distributionOf(all.map(of));
  return {
    accel,
    cores,
    slots,
    tasks: job.tasks.total,
    failed: job.tasks.failed,
    seconds,
    tasksPerSecond: job.tasks.total / seconds,
    submitToResultMs: spread(({ toldAt }) => toldAt - submittedAt),
    steps: {
      waitMs: spread(({ beganAt }) => beganAt - submittedAt),
      forkMs: spread(({ beganAt, runningAt }) => runningAt - beganAt),
      identifyMs: spread(({ runningAt, identifiedAt }) => identifiedAt - runningAt),
      runMs: spread(({ identifiedAt, endedAt }) => endedAt - identifiedAt),
      recordMs: spread(({ endedAt, toldAt }) => toldAt - endedAt),
    },
  };
}

/** A runtime that notes when each of its attempts came how far; the last attempt of a task counts. */
class TimedRuntime implements TaskRuntime {
  /** By index, in ms since 1970. */
  readonly times = new Map<number, Times>();
  readonly #inner: TaskRuntime;

  constructor(inner: TaskRuntime) {
    this.#inner = inner;
  }

  get name(): string {
    return this.#inner.name;
  }

  get accel(): string | undefined {
    return this.#inner.accel;
  }

  get cores(): number {
    return this.#inner.cores;
  }

  get slots(): number {
    return this.#inner.slots;
  }

  get memoryBytes(): number {
    return this.#inner.memoryBytes;
  }

  prepare(...args: Parameters<TaskRuntime["prepare"]>): Promise<void> {
    return this.#inner.prepare(...args);
  }

  readiness(family: string) {
    return this.#inner.readiness(family);
  }

  onReadiness(listener: (family: string) => void): Disposable {
    return this.#inner.onReadiness(listener);
  }

  admit(family: string, signal: AbortSignal): Promise<Disposable> {
    return this.#inner.admit(family, signal);
  }

  async run(attempt: Attempt, io: AttemptIo, signal: AbortSignal) {
    let started: Omit<Times, "endedAt"> | undefined;
    const timed: AttemptIo = {
      started: (child) => {
        started = child;
        return io.started(child);
      },
      output: (stream, chunk) => io.output(stream, chunk),
      artifact: (file, content) => io.artifact(file, content),
    };
    try {
      return await this.#inner.run(attempt, timed, signal);
    } finally {
      if (started) this.times.set(attempt.index, { ...started, endedAt: Date.now() });
    }
  }

  [Symbol.asyncDispose](): PromiseLike<void> {
    return this.#inner[Symbol.asyncDispose]();
  }
}
