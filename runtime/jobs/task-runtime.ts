import type { Receipt, WorkerSpec } from "../api/mod.ts";
import type { Readiness } from "./ports.ts";

/** One attempt at a task, as a runtime gets it. */
export interface Attempt {
  family: string;
  spec: WorkerSpec;
  job: string;
  index: number;
  /** Id of the key that the job belongs to; "" where no keys are needed. */
  owner: string;
  /** VMs that are that key's at a time, of those that are forked or made by hand. @default no limit */
  maxVms?: number | undefined;
  /** Start of the child's host name. */
  name: string;
  /** Complete but for FLURRY_VM_ID, which the runtime adds. Secrets are in it. */
  env: Record<string, string>;
  /** What the command reads from its standard input. */
  stdin?: Uint8Array | undefined;
  /** The task's input as JSON, which modules get. */
  input?: string | undefined;
  timeoutMs?: number | undefined;
}

/** What a runtime tells of an attempt while it runs. */
export interface AttemptIo {
  /** The child runs and has proven who it is. Times in ms since 1970. */
  started(child: {
    vm: string;
    beganAt: number;
    runningAt: number;
    identifiedAt: number;
  }): void | Promise<void>;
  /** What the task prints; it is held back while this is busy. */
  output(stream: "stdout" | "stderr", chunk: Uint8Array): void | Promise<void>;
  /** A file of /out. */
  artifact(
    file: { path: string; mode: number; size: number },
    content: AsyncIterable<Uint8Array>,
  ): Promise<void>;
}

/** How a task's command ended, or its module's `task()`. */
export interface AttemptExit {
  /** What `task()` has returned, as JSON; commands have none. */
  value?: string | undefined;
  exitCode?: number | undefined;
  signal?: string | undefined;
}

/** A child that has proven who it is. */
export interface ProvenChild {
  vm: string;
  /** Says how; that is some work. */
  receipt(): Receipt;
}

/** Hears what children prove. It must neither throw nor take time: forks go on behind it. */
export interface ChildObserver {
  proven(child: ProvenChild): void;
  /** @param field - what was wrong with its proof */
  unproven(field: string): void;
}

/**
 * Runs tasks: in forked VMs (runtime/workers), or by a script where VMs would only burn time (tests,
 * the gateway's bench).
 */
export interface TaskRuntime extends AsyncDisposable {
  /** Name of the machine, for people. */
  readonly name: string;
  readonly accel?: string | undefined;
  readonly cores: number;
  /** Attempts that it takes at the same time. */
  readonly slots: number;
  /** Bytes that children may use together. */
  readonly memoryBytes: number;
  /**
   * Makes the parent of a family ready, or finds it so.
   *
   * @throws FlurryError of the user's fault (IMAGE_NOT_FOUND, TASK_FAILED of a warm-up …) or of the
   * infrastructure; ABORTED
   */
  prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void>;
  /** State of a family's parent. */
  readiness(family: string): Readiness;
  /** Calls back after each change of a family's readiness. */
  onReadiness(listener: (family: string) => void): Disposable;
  /** Waits until the host has memory for a child of a family that is ready. */
  admit(family: string, signal: AbortSignal): Promise<Disposable>;
  /**
   * Runs one attempt in a VM of its own, which is gone when this returns.
   *
   * @throws FlurryError TASK_TIMEOUT, TASK_FAILED, CHILD_DIED, FORK_FAILED, CHILD_UNPROVEN, NO_SPACE …;
   * ABORTED. Whatever `io` throws.
   */
  run(attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit>;
}
