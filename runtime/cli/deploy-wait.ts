import { setTimeout as sleep } from "node:timers/promises";
import { lookupCode } from "../../errors/codes.ts";
import { codeOf, describeError, FlurryError } from "../../errors/errors.ts";
import type { FlurryClient, WorkerVersion } from "../client/mod.ts";

type WorkersApi = Pick<FlurryClient["workers"], "get" | "setCurrent">;

/** Milliseconds between two looks at a version: at first, and at most. */
const FIRST_LOOK_MS = 150;
const LAST_LOOK_MS = 3000;

export interface WaitOptions {
  /** Longest wait in milliseconds. */
  timeoutMs: number;
  /** Milliseconds after which a version that nothing is done for is brought to mind again. @default 10_000 */
  coldMs?: number | undefined;
  /** Milliseconds for the gateway to begin anew with what has failed before. @default 5000 */
  staleMs?: number | undefined;
  onStep?: ((step: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Waits until a version that has just been deployed is ready, or has failed.
 *
 * Looks again and again, ever less often, because the gateway has no stream of what becomes of workers:
 * only jobs have events. Each look fetches the version with its code, which is why the wait grows.
 *
 * @param deployed - as PUT has given it
 * @throws FlurryError NOT_READY after `timeoutMs`, ABORTED, and as the client
 */
export async function untilSettled(
  workers: WorkersApi,
  deployed: WorkerVersion,
  { timeoutMs, coldMs = 10_000, staleMs = 5000, onStep, signal }: WaitOptions,
): Promise<WorkerVersion> {
  const { name, version } = deployed;
  const began = performance.now();
  let worker = deployed;
  // PUT answers before the gateway has begun: a failure that it shows is that of an earlier try with
  // the same code.
  let isStale = worker.state === "failed";
  let coldSince = began;
  let shown: string | undefined;
  for (let lookMs = FIRST_LOOK_MS; ; lookMs = Math.min(LAST_LOOK_MS, lookMs * 1.5)) {
    if (worker.state === "ready") return worker;
    const now = performance.now();
    if (worker.state !== "failed") isStale = false;
    else if (!isStale || now - began > staleMs) return worker;
    if (worker.state !== "cold") coldSince = now;
    if (now - began > timeoutMs) throw notReady(worker, timeoutMs);
    if (worker.step !== undefined && worker.step !== shown) onStep?.(worker.step);
    shown = worker.step ?? shown;
    await sleep(lookMs, undefined, signal ? { signal } : {});
    worker = await workers.get(name, { version, signal });
    if (worker.state === "cold" && worker.current && performance.now() - coldSince > coldMs) {
      // A gateway that has much to make ready leaves the rest for later, and a new one knows of nothing.
      worker = await workers.setCurrent(name, version, { signal });
      coldSince = performance.now();
    }
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
  failed: WorkerVersion,
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
  { name, version }: WorkerVersion,
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

function notReady({ name, version, state, step }: WorkerVersion, timeoutMs: number): FlurryError {
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
