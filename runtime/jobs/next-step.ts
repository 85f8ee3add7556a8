import { lookupCode } from "../../errors/codes.ts";
import { describeError } from "../../errors/errors.ts";
import type { Failure, Retry } from "../api/mod.ts";
import type { AttemptEnd, AttemptResult, Claim } from "./ports.ts";
import type { AttemptExit } from "./task-runtime.ts";

/** How often the infrastructure may fail one task before the task fails. */
export const MAX_INFRASTRUCTURE_FAILURES = 8;

/** Wait before a task that the infrastructure failed is tried again: doubles each time. */
const INFRASTRUCTURE_BACKOFF: Retry["backoff"] = { initialMs: 500, factor: 2, maxMs: 30_000 };

/**
 * Whose fault an error is:
 * - `attempt`: the task's own, and its attempt counts
 * - `user`: of what was asked for; trying again changes nothing
 * - `infrastructure`: ours, or the machine's; the attempt does not count
 * - `aborted`: nobody's
 */
export type FailureClass = "attempt" | "user" | "infrastructure" | "aborted";

/** Fails each time, although it is no mistake in what was asked: the host is too small for it. */
const TOO_LARGE = "ADMISSION_REFUSED";

/** The class of an error's code. What has no code of ours is INTERNAL, and so the infrastructure's. */
export function classOf(code: string): FailureClass {
  const exit = lookupCode(code)?.exit;
  if (exit === 4) return "attempt";
  if (exit === 2 || code === TOO_LARGE) return "user";
  return exit === 130 ? "aborted" : "infrastructure";
}

/** What became of an attempt. */
export type Ending = (
  | { exit: AttemptExit }
  /** `prepare`: before there was a child. What fails then fails for each attempt. */
  | { error: unknown; stage: "prepare" | "run" }
) & {
  /** What was asked of it while it ran. */
  stop?: { why: "canceled" | "shutdown"; reason: string } | undefined;
  left: Pick<AttemptResult, "stdout" | "stdoutTruncated" | "artifacts">;
};

/**
 * Decides what an attempt's end means for its task.
 *
 * @param random - from 0 to below 1
 */
export function nextStep(
  claim: Pick<Claim, "attempt" | "infrastructureFailures" | "retry">,
  ending: Ending,
  random: () => number,
): AttemptEnd {
  // A command that came to its end did so, whatever was asked of it in the meantime.
  if ("exit" in ending) return afterExit(claim, ending.exit, ending.left, random);
  const { stop, left } = ending;
  if (stop?.why === "canceled") return { state: "canceled", reason: stop.reason };
  if (stop) return { state: "queued", reason: stop.reason, delayMs: 0 };
  const error = failureOf(ending.error);
  const kind = classOf(error.code);
  if (kind === "attempt" && ending.stage === "run") {
    if (claim.attempt < claim.retry.maxAttempts) return retrying(claim, error.message, error, random);
    return { state: "failed", reason: error.message, result: { ...left, error } };
  }
  if (kind === "attempt" || kind === "user") {
    return { state: "failed", reason: error.message, result: { ...left, error } };
  }
  return afterInfrastructure(claim, error, left, random);
}

/** An error as people see it. */
export function failureOf(error: unknown): Failure {
  const { code, message: text, hint } = describeError(error);
  // A guest has a say in it, and no text that is stored may hold a NUL.
  const message = text.replaceAll("\0", "\ufffd");
  return hint === undefined ? { code, message } : { code, message, hint };
}

function afterExit(
  claim: Pick<Claim, "attempt" | "retry">,
  exit: AttemptExit,
  left: Ending["left"],
  random: () => number,
): AttemptEnd {
  const { exitCode, signal, value } = exit;
  if (value !== undefined) {
    return { state: "succeeded", reason: "Returned a value", result: { ...left, exitCode, value } };
  }
  if (exitCode === 0) return { state: "succeeded", reason: "Exited with 0", result: { ...left, exitCode } };
  const reason = signal === undefined ? `Exited with ${exitCode}` : `Ended by ${signal}`;
  if (claim.attempt < claim.retry.maxAttempts) return retrying(claim, reason, undefined, random);
  return { state: "failed", reason, result: { ...left, exitCode, signal } };
}

function retrying(
  claim: Pick<Claim, "attempt" | "retry">,
  reason: string,
  error: Failure | undefined,
  random: () => number,
): AttemptEnd {
  const delayMs = backoffMs(claim.retry.backoff, claim.attempt, random);
  return { state: "retrying", reason, error, delayMs };
}

function afterInfrastructure(
  claim: Pick<Claim, "infrastructureFailures">,
  error: Failure,
  left: Ending["left"],
  random: () => number,
): AttemptEnd {
  const failures = claim.infrastructureFailures + 1;
  if (failures < MAX_INFRASTRUCTURE_FAILURES) {
    const delayMs = backoffMs(INFRASTRUCTURE_BACKOFF, failures, random);
    return { state: "queued", reason: error.message, error, delayMs };
  }
  const reason = `The infrastructure failed this task ${failures} times, last with ${error.code}: ${error.message}`;
  const hint = error.hint === undefined ? {} : { hint: error.hint };
  return {
    state: "failed",
    reason,
    result: { ...left, error: { code: "INFRASTRUCTURE_FAILED", message: reason, ...hint } },
  };
}

/** Wait after attempt `n`, from 1: between a half and all of what the policy says, so that tasks part. */
export function backoffMs(backoff: Retry["backoff"], n: number, random: () => number): number {
  const full = Math.min(backoff.maxMs, backoff.initialMs * backoff.factor ** (n - 1));
  return Math.round(full * (0.5 + random() / 2));
}
