import { FlurryError } from "../../../errors/errors.ts";
import { type DoneInfo, WorkerError } from "../../../guest-agent/protocol/worker/mod.ts";
import type { Failure } from "../../api/mod.ts";
import { failureOf } from "../../jobs/next-step.ts";
import { LivenessProbe } from "../liveness-probe.ts";
import type { JsChild } from "./js-child.ts";

/** Milliseconds that a guest may leave a question unanswered before it counts as dead. */
const SILENCE_MS = 60_000;

/** What `scheduled()` is told. */
export interface CronEvent {
  cron: string;
  /** The time that it is called for, in ms since 1970. */
  time: number;
}

/** How a call of `scheduled()` went. */
export interface ScheduledEnd {
  vm: string;
  /** From the call until it, and what it gave to `waitUntil`, were over. */
  ms: number;
  /** Why it failed, if it did. */
  error?: Failure | undefined;
}

export interface ScheduledOptions {
  /** Longest time until all is over, the wait for a VM included, in ms. */
  timeoutMs: number;
  signal: AbortSignal;
}

/** Where its child comes from: `ScalingPorts` has this shape. */
interface Forks {
  admit(signal: AbortSignal): Promise<Disposable>;
  fork(signal: AbortSignal, isAhead: boolean): Promise<JsChild>;
}

/** Gets the stack of what the worker throws. */
type OnFailure = (vm: string, text: string) => void;

/**
 * Calls a worker's `scheduled(event, env, ctx)` in a fork of its own, which is gone when this settles, and
 * waits for what that gives to `waitUntil`.
 *
 * Resolves if `scheduled()` was called, however that went: who gets an error may try again, and no event
 * is begun twice.
 *
 * @throws FlurryError NOT_READY when there was no VM in time; BAD_ARGUMENT when the worker has no
 * `scheduled()`; TASK_FAILED when its `onFork()` fails; as `JsChild.fork`; ABORTED by the signal, also
 * while it runs
 */
export async function runScheduled(
  { admit, fork }: Forks,
  event: CronEvent,
  onFailure: OnFailure,
  { timeoutMs, signal }: ScheduledOptions,
): Promise<ScheduledEnd> {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), timeoutMs);
  using _timer = { [Symbol.dispose]: () => clearTimeout(timer) };
  const limit = AbortSignal.any([signal, late.signal]);
  try {
    using _place = await admit(limit);
    await using child = await fork(limit, false);
    const began = performance.now();
    const error = await failureIn(child, event, onFailure, limit);
    const ms = performance.now() - began;
    if (!late.signal.aborted) return { vm: child.id, ms, error };
    const message = `scheduled() has not ended within ${timeoutMs} ms, the wait for its VM included`;
    return { vm: child.id, ms, error: { code: "WORKER_TIMEOUT", message } };
  } catch (error) {
    if (signal.aborted) throw new FlurryError("ABORTED", "The call was aborted", { cause: error });
    if (late.signal.aborted) {
      const message = `There was no VM to call scheduled() in within ${timeoutMs} ms`;
      throw new FlurryError("NOT_READY", message, { cause: error });
    }
    if (!(error instanceof WorkerError) || error.remote !== "FORK_FAILED") throw error;
    onFailure("", error.workerStack ?? error.message);
    throw new FlurryError("TASK_FAILED", error.message, { cause: error });
  }
}

/** Calls it. @returns why it failed; undefined if it has not */
async function failureIn(
  child: JsChild,
  event: CronEvent,
  onFailure: OnFailure,
  signal: AbortSignal,
): Promise<Failure | undefined> {
  using probe = new LivenessProbe(child.agent, SILENCE_MS);
  try {
    const done = await child.worker.scheduled(event, { signal: AbortSignal.any([signal, probe.lost]) });
    // An exit is told before the end that it left behind.
    return child.death ? failureOf(child.death) : failureOfWaits(done);
  } catch (error) {
    if (probe.lost.aborted) child.condemn(`its guest has not answered for ${SILENCE_MS} ms`);
    const reason = await child.explain(error);
    if (reason instanceof WorkerError && reason.remote === "NO_HANDLER") {
      throw new FlurryError("BAD_ARGUMENT", "The worker has no scheduled()", {
        hint: "export default { scheduled(event, env, ctx) { … } }",
        cause: error,
      });
    }
    if (reason instanceof WorkerError && reason.code === "TASK_FAILED") {
      onFailure(child.id, reason.workerStack ?? reason.message);
    }
    return failureOf(reason);
  }
}

function failureOfWaits({ waited, failed, unsettled }: DoneInfo): Failure | undefined {
  if (failed === 0 && unsettled === 0) return undefined;
  const which =
    failed > 0 ? `${failed} of ${waited} were rejected` : `${unsettled} of ${waited} never settled`;
  return { code: "TASK_FAILED", message: `What scheduled() gave to waitUntil() failed: ${which}` };
}
