import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { JobHead, type JobHeadInput, type TaskResult } from "../../runtime/api/mod.ts";
import { systemClock } from "../../runtime/clock.ts";
import { Dispatcher, type DispatcherOptions } from "../../runtime/jobs/dispatcher.ts";
import { Jobs, type JobsOptions, type NewTasks, type Submission } from "../../runtime/jobs/jobs.ts";
import type { Store, StoredJob } from "../../runtime/jobs/ports.ts";
import { openStore } from "../../runtime/store/open.ts";
import { ScriptedRuntime, type ScriptedRuntimeOptions } from "./scripted-runtime.ts";

export interface Bench extends AsyncDisposable {
  dir: string;
  /** The real one, without what tests put around it. */
  store: Store;
  runtime: ScriptedRuntime;
  dispatcher: Dispatcher;
  jobs: Jobs;
  submit(tasks: NewTasks, head?: Partial<JobHeadInput>, submission?: Partial<Submission>): Promise<string>;
  /** Waits until a job is as it should be. */
  until(id: string, is: (stored: StoredJob) => boolean): Promise<StoredJob>;
  /** Waits until a job has ended. */
  ended(id: string): Promise<StoredJob>;
}

type BenchOptions = ScriptedRuntimeOptions &
  Partial<Omit<DispatcherOptions, "store" | "runtime">> & {
    limits?: JobsOptions["limits"];
    /** What the dispatcher gets in place of the store. */
    around?: (store: Store) => Store;
    /** @default a new one, removed in the end */
    dir?: string;
    /** @default true */
    start?: boolean;
  };

/** In memory where there is such a place: these tests are not about disks. */
const root = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();

/** A dispatcher and a jobs service over the real store and a scripted runtime. */
export async function openBench(options: BenchOptions = {}): Promise<Bench> {
  const { clock = systemClock, around = (same) => same, start = true, limits, ...others } = options;
  await using stack = new AsyncDisposableStack();
  const dir = options.dir ?? mkdtempSync(join(root, "flurry-jobs-"));
  if (options.dir === undefined) stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const store = stack.use(await openStore({ dir, clock }));
  const runtime = stack.use(new ScriptedRuntime(options));
  const dispatcher = stack.use(new Dispatcher({ ...others, clock, runtime, store: around(store) }));
  const jobs = stack.use(new Jobs({ store, dispatcher, limits }));
  if (start) await dispatcher.start();
  const owned = stack.move();
  const until: Bench["until"] = (id, is) => untilJob(store, id, is);
  return {
    ...{ dir, store, runtime, dispatcher, jobs, until },
    submit: async (tasks, head = {}, submission = {}) => {
      const whole = JobHead.parse({ worker: { image: "base", command: ["true"] }, ...head });
      const who = { owner: "", limits: {}, bodyHash: () => "hash", ...submission };
      return (await jobs.submit(whole, tasks, who)).stored.job.id;
    },
    ended: (id) => until(id, ({ job }) => ["succeeded", "failed", "canceled"].includes(job.state)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function untilJob(store: Store, id: string, is: (stored: StoredJob) => boolean): Promise<StoredJob> {
  for (;;) {
    const changed = Promise.withResolvers<void>();
    using _listener = store.jobs.onChange((job) => {
      if (job === id) changed.resolve();
    });
    const stored = await store.jobs.get(id);
    if (!stored) throw new Error(`There is no job ${id}`);
    if (is(stored)) return stored;
    await changed.promise;
  }
}

/** All results of a job by index, read page by page. */
export async function resultsOf(store: Store, id: string): Promise<TaskResult[]> {
  const all: TaskResult[] = [];
  for (let after: number | undefined; ; ) {
    const { items, next } = await store.jobs.results(id, { order: "index", after, limit: 1000 });
    if (items.length === 0) return all;
    all.push(...items);
    after = next;
  }
}

/** Files that the blobs of a job are. */
export function blobFiles(bench: Pick<Bench, "dir">, job: string): string[] {
  const dir = join(bench.dir, "blobs", job);
  if (!existsSync(dir)) return [];
  const entries = readdirSync(dir, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map(({ name }) => name);
}

/** Lets everything happen that can happen now, store and files included. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
}
