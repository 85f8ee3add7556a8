import { lookupCode } from "../../errors/codes.ts";
import { codeOf, describeError, FlurryError } from "../../errors/errors.ts";
import type { FlurryClient, WorkerStatus, WorkerVersion } from "../client/mod.ts";

type WorkersApi = Pick<FlurryClient["workers"], "get" | "state" | "setCurrent">;

/** How long the gateway is asked to wait for what comes next. */
const WAIT_MS = 20_000;

export interface WaitOptions {
  /** Longest wait in milliseconds. */
  timeoutMs: number;
  onStep?: ((step: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Waits until a version that has just been deployed is ready, or has failed: the gateway answers as soon as
 * there is something else to tell.
 *
 * @throws FlurryError NOT_READY after `timeoutMs`, ABORTED, and as the client
 */
export async function untilSettled(
  workers: WorkersApi,
  { name, version }: Pick<WorkerVersion, "name" | "version">,
  { timeoutMs, onStep, signal }: WaitOptions,
): Promise<WorkerStatus> {
  const end = performance.now() + timeoutMs;
  let status = await workers.state(name, { version, signal });
  let shown: string | undefined;
  for (;;) {
    if (status.state === "ready" || status.state === "failed") return status;
    if (status.step !== undefined && status.step !== shown) onStep?.(status.step);
    shown = status.step ?? shown;
    // A gateway that has been started anew knows of nothing that it was to make ready.
    if (status.state === "cold" && status.current) await workers.setCurrent(name, version, { signal });
    const leftMs = Math.ceil(end - performance.now());
    if (leftMs <= 0) throw notReady(status, timeoutMs);
    const waitMs = Math.min(leftMs, WAIT_MS);
    status = await workers.state(name, { version, after: status.seen, waitMs, signal });
  }
}

/**
 * Makes the version before the current one again after one has failed, unless somebody has deployed
 * another meanwhile.
 *
 * @returns the error to end with: it says why the version failed and which one is current now
 */
export async function failureOf(
  workers: WorkersApi,
  failed: WorkerStatus,
  before: WorkerVersion | undefined,
): Promise<{ error: FlurryError; restored: WorkerVersion | undefined }> {
  const { name, version, error = { code: "WORKER_LOAD_FAILED", message: "no reason is known" } } = failed;
  let restored: WorkerVersion | undefined;
  let outcome: string;
  try {
    restored = await goBack(workers, failed, before);
    outcome = restored ? `${name}@${restored.version} is current again` : `${name}@${version} stays as it is`;
  } catch (cause) {
    // The worker's failure is what has to be told first.
    const { code, message } = describeError(cause);
    outcome = `${name}@${before?.version} could not be made current again: ${message} (${code})`;
  }
  const hint = [error.hint, outcome].filter((text) => text !== undefined).join("; ");
  const message = `${name}@${version} is not ready: ${error.message}`;
  return { error: new FlurryError(codeFor(error.code), message, { hint }), restored };
}

async function goBack(
  workers: WorkersApi,
  { name, version }: WorkerStatus,
  before: WorkerVersion | undefined,
): Promise<WorkerVersion | undefined> {
  if (before === undefined || before.version === version) return undefined;
  const current = await workers.get(name);
  return current.version === version ? await workers.setCurrent(name, before.version) : undefined;
}

/** What the gateway's host failed of keeps its code: the module is not to blame. */
function codeFor(code: string): FlurryError["code"] {
  const exit = lookupCode(code)?.exit;
  return exit === 3 || exit === 5 ? (code as FlurryError["code"]) : "WORKER_LOAD_FAILED";
}

function notReady({ name, version, state, step }: WorkerStatus, timeoutMs: number): FlurryError {
  const doing = step === undefined ? state : `${state}: ${step}`;
  const message = `${name}@${version} is not ready after ${timeoutMs / 1000} s (${doing})`;
  return new FlurryError("NOT_READY", message, {
    hint: `the gateway goes on; flurry worker get ${name} shows how far it is`,
  });
}

/** The current version; undefined when there is no such worker. */
export async function currentVersion(workers: WorkersApi, name: string): Promise<WorkerVersion | undefined> {
  try {
    return await workers.get(name);
  } catch (error) {
    if (codeOf(error) === "WORKER_NOT_FOUND") return undefined;
    throw error;
  }
}
