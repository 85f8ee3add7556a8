import { FlurryError } from "../../errors/errors.ts";
import type { WorkerSpec } from "../../runtime/api/mod.ts";
import type { Readiness } from "../../runtime/jobs/ports.ts";
import type { Attempt, AttemptExit, AttemptIo, TaskRuntime } from "../../runtime/jobs/task-runtime.ts";

/** One attempt, as its script sees it. */
export interface ScriptedTask extends Attempt {
  /** FLURRY_ATTEMPT. */
  number: number;
  /** FLURRY_JOB_ID. */
  job: string;
  vm: string;
  signal: AbortSignal;
  print(text: string | Uint8Array, stream?: "stdout" | "stderr"): Promise<void>;
  /** Leaves a file in /out. */
  leave(path: string, content: string | AsyncIterable<Uint8Array>): Promise<void>;
}

/** What an attempt does; what it throws is what the runtime fails of. Its child has started before. */
export type Script = (task: ScriptedTask) => AttemptExit | Promise<AttemptExit>;

export interface ScriptedRuntimeOptions {
  /** @default exits with 0 at once */
  script?: Script;
  /** Makes a parent. @default at once */
  prepare?: (family: string, spec: WorkerSpec, signal: AbortSignal) => void | Promise<void>;
  /** @default 4 */
  slots?: number;
}

/** Runs tasks by a script, without VMs. It honours aborts, whatever its scripts do. */
export class ScriptedRuntime implements TaskRuntime {
  readonly name = "scripted";
  readonly cores = 2;
  readonly memoryBytes = 1024 ** 3;
  slots: number;
  script: Script;
  prepareFamily: NonNullable<ScriptedRuntimeOptions["prepare"]>;
  /** Children that live now, by their VM. */
  readonly live = new Map<string, { task: ScriptedTask; die: (error: FlurryError) => void }>();
  /** Most children that lived at the same time. */
  most = 0;
  /** Children that were started. */
  runs = 0;
  readonly #ready = new Set<string>();
  readonly #listeners = new Set<(family: string) => void>();
  #disposed = false;

  constructor({ script = () => ({ exitCode: 0 }), prepare, slots = 4 }: ScriptedRuntimeOptions = {}) {
    this.script = script;
    this.prepareFamily = prepare ?? (() => undefined);
    this.slots = slots;
  }

  async prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    await untilAborted(signal, async () => this.prepareFamily(family, spec, signal));
    this.#ready.add(family);
    this.changed(family);
  }

  readiness(family: string): Readiness {
    return { state: this.#ready.has(family) ? "ready" : "cold" };
  }

  onReadiness(listener: (family: string) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) };
  }

  /** Tells that the readiness of a family has changed. */
  protected changed(family: string): void {
    for (const listener of this.#listeners) listener(family);
  }

  /** Gives the parent of a family up. */
  forget(family: string): void {
    this.#ready.delete(family);
    this.changed(family);
  }

  async admit(_family: string, signal: AbortSignal): Promise<Disposable> {
    if (signal.aborted) throw new FlurryError("ABORTED", "Aborted by the caller");
    return { [Symbol.dispose]: () => undefined };
  }

  async run(attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit> {
    if (this.#disposed) throw new FlurryError("INTERNAL", "The runtime has been disposed");
    const vm = `vm-${++this.runs}`;
    const task = scriptedTask(attempt, vm, io, signal);
    const death = Promise.withResolvers<never>();
    this.live.set(vm, { task, die: death.reject });
    this.most = Math.max(this.most, this.live.size);
    try {
      return await untilAborted(signal, async () => {
        const now = Date.now();
        await io.started({ vm, beganAt: now, runningAt: now, identifiedAt: now });
        return await Promise.race([this.script(task), death.promise]);
      });
    } finally {
      this.live.delete(vm);
    }
  }

  /** Lets a child die, as by `kill -9` of its process. */
  kill(vm: string): void {
    this.live.get(vm)?.die(new FlurryError("CHILD_DIED", `QEMU of ${vm} has exited`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    if (this.live.size > 0) throw new Error(`${this.live.size} children still live`);
  }
}

function scriptedTask(attempt: Attempt, vm: string, io: AttemptIo, signal: AbortSignal): ScriptedTask {
  return {
    ...attempt,
    number: Number(attempt.env.FLURRY_ATTEMPT),
    job: attempt.env.FLURRY_JOB_ID ?? "",
    vm,
    signal,
    print: async (text, stream = "stdout") => io.output(stream, bytesOf(text)),
    leave: async (path, content) => {
      const size = typeof content === "string" ? bytesOf(content).length : 0;
      await io.artifact({ path, mode: 0o644, size }, typeof content === "string" ? once(content) : content);
    },
  };
}

async function* once(content: string): AsyncGenerator<Uint8Array> {
  yield bytesOf(content);
}

function bytesOf(content: string | Uint8Array): Uint8Array {
  return typeof content === "string" ? new TextEncoder().encode(content) : content;
}

async function untilAborted<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(new FlurryError("ABORTED", "Aborted by the caller"));
  if (signal.aborted) onAbort();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    if (signal.aborted) return await aborted.promise;
    return await Promise.race([work(), aborted.promise]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
