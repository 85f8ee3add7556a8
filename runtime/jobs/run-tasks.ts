import { codeOf, describeError, type ErrorReport } from "../../errors/errors.ts";
import type { FamilyAdmission } from "../fork/admission.ts";
import type { StartTimes } from "../fork/child.ts";
import type { Identity } from "../fork/identity.ts";
import { throwIfAborted } from "../vm/qemu-process.ts";
import { type OutputHandler, runTask, type TaskOutcome, type TaskSpec, type TaskVm } from "./task.ts";

export interface RunTasksOptions {
  /** Starts the VM of a task, such as a fork of a parent. */
  start: (options: { identity: Identity; onOutput: OutputHandler; signal: AbortSignal }) => Promise<TaskVm>;
  admission: FamilyAdmission;
  count: number;
  /** What task `index` does. */
  task: (index: number) => Omit<TaskSpec, "index">;
  /** Starts the host names of the children. */
  name: string;
  onEvent?: ((event: TaskEvent) => void | Promise<void>) | undefined;
  signal?: AbortSignal | undefined;
}

export type TaskEvent =
  | { event: "started"; task: number; vm: string; times: StartTimes }
  | { event: "output"; task: number; stream: "stdout" | "stderr"; chunk: Uint8Array }
  | { event: "ended"; task: number; result: TaskResult };

/** What became of a task. */
export interface TaskResult {
  index: number;
  state: "succeeded" | "failed";
  /** How its command ended; absent if it did not come to that. */
  outcome?: TaskOutcome;
  /** Why it failed, if not by its own exit status. */
  error?: ErrorReport;
  times?: StartTimes;
  /** Private memory of the VM at the end of the task. */
  privateBytes?: number;
  /** Milliseconds from its admission to its end. */
  totalMs: number;
}

/**
 * Runs `count` tasks, each in a VM of its own, as many at a time as admission allows. One task's
 * failure does not touch the others.
 *
 * @returns one result a task, by index
 * @throws FlurryError ABORTED, ADMISSION_REFUSED; whatever `onEvent` throws. No task is under way any
 * more then.
 */
export async function runTasks(options: RunTasksOptions): Promise<TaskResult[]> {
  const stop = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, stop.signal]) : stop.signal;
  const running: Promise<TaskResult>[] = [];
  const failures: unknown[] = [];
  const fail = (error: unknown) => {
    failures.push(error);
    stop.abort();
  };
  // Whoever cannot take events has no use for tasks: that is not one task's failure.
  const onEvent = async (event: TaskEvent) => {
    try {
      await options.onEvent?.(event);
    } catch (error) {
      fail(error);
      throw error;
    }
  };
  try {
    for (let index = 0; index < options.count; index++) {
      const ticket = await options.admission.acquire({ signal });
      const run = runOne({ ...options, onEvent }, index, signal).finally(() => ticket[Symbol.dispose]());
      running.push(run);
      run.catch(fail);
    }
    return await Promise.all(running);
  } catch (error) {
    // The others fail because of the first one.
    throw failures[0] ?? error;
  } finally {
    stop.abort();
    await Promise.allSettled(running);
    throwIfAborted(options.signal);
  }
}

async function runOne(options: RunTasksOptions, index: number, signal: AbortSignal): Promise<TaskResult> {
  const began = performance.now();
  const { onEvent } = options;
  const result: TaskResult = { index, state: "failed", totalMs: 0 };
  const onOutput: OutputHandler = (stream, chunk) =>
    onEvent?.({ event: "output", task: index, stream, chunk });
  try {
    const identity = { index, hostname: `${options.name}-${index}` };
    await using vm = await options.start({ identity, onOutput, signal });
    result.times = vm.times;
    await onEvent?.({ event: "started", task: index, vm: vm.id, times: vm.times });
    const spec = options.task(index);
    const env = { ...spec.env, ...taskVariables(index, options.count, vm.id) };
    result.outcome = await runTask(vm, { ...spec, env, index }, onOutput, signal);
    result.state = result.outcome.code === 0 ? "succeeded" : "failed";
    result.privateBytes = vm.privateBytes();
    options.admission.learn(result.privateBytes);
  } catch (error) {
    if (signal.aborted || codeOf(error) === "ABORTED") throw error;
    result.error = describeError(error);
  }
  result.totalMs = performance.now() - began;
  await onEvent?.({ event: "ended", task: index, result });
  return result;
}

/** What every task finds in its environment. */
export function taskVariables(index: number, count: number, vm: string): Record<string, string> {
  return {
    FLURRY_TASK_INDEX: String(index),
    FLURRY_TASK_COUNT: String(count),
    FLURRY_ATTEMPT: "1",
    FLURRY_VM_ID: vm,
  };
}
