import { setTimeout as sleep } from "node:timers/promises";
import { codeOf, FlurryError } from "../../../errors/errors.ts";
import type { WorkerClient, WorkerRequest } from "../../../guest-agent/protocol/worker/mod.ts";
import { answerOf } from "./http.ts";

/** Milliseconds in which a worker whose event loop turns has answered a ping. */
const PONG_MS = 2000;
/** Milliseconds in which a worker lets go of a request that nobody wants any more. */
const LET_GO_MS = 5000;
/** Milliseconds more after an answer: what it gave to `waitUntil` may take 30 seconds. */
const WAIT_UNTIL_MS = 30_000;

/** A child as far as an answer needs one; `JsChild` has this shape. */
export interface AnsweringChild {
  readonly id: string;
  readonly worker: Pick<WorkerClient, "begin" | "ping">;
  readonly death: FlurryError | undefined;
  condemn(reason: string): FlurryError;
  explain(error: unknown): Promise<unknown>;
}

export interface AnswerOptions {
  /** Fires when nobody wants the answer any more. */
  signal: AbortSignal;
  /** Longest time until the answer's head, in milliseconds. */
  timeoutMs: number;
  /** Whether the child has no other request, nor will have one. */
  alone: boolean;
  /** Gets the answer, or why there is none; all but the first are of no use. */
  resolve: (answer: Response) => void;
  reject: (error: unknown) => void;
}

/**
 * Has a child answer a request. Settles when the child is through with it, what it gave to `waitUntil`
 * included. Within bounds: a worker that does not let go of a request is given up, and so is one that has
 * stopped turning.
 *
 * @throws what says that the child is to be given no more requests: FlurryError CHILD_DIED when it is
 * dead, or stands still and was condemned; WORKER_TIMEOUT when it is not through with the request;
 * WorkerError AGENT_PROTOCOL
 */
export async function answerRequest(
  child: AnsweringChild,
  request: WorkerRequest,
  options: AnswerOptions,
): Promise<void> {
  const { signal, timeoutMs, alone, resolve, reject } = options;
  let done: Promise<unknown> = Promise.resolve();
  let isAnswered = false;
  try {
    const begun = child.worker.begin(request, { signal, timeoutMs });
    done = begun.done;
    const { answer, read } = await answerOf(request.method, await begun.response);
    // An exit is told before the answer that it left behind.
    if (child.death) throw child.death;
    isAnswered = true;
    resolve(answer);
    await read;
  } catch (error) {
    const failure = await child.explain(error);
    const isLate = codeOf(failure) === "AGENT_TIMEOUT";
    const reason = isLate ? late(request, timeoutMs, error) : signal.aborted ? signal.reason : failure;
    reject(reason);
    if (alone || isLost(failure)) throw reason;
    if (isLate) await mustTurn(child);
  }
  if (await within(done, LET_GO_MS)) return;
  await mustTurn(child);
  if (isAnswered && (await within(done, WAIT_UNTIL_MS))) return;
  throw new FlurryError("WORKER_TIMEOUT", `${child.id} does not let go of ${nameOf(request)}`);
}

/** Condemns a child whose event loop stands still. @throws FlurryError CHILD_DIED */
async function mustTurn(child: AnsweringChild): Promise<void> {
  try {
    await child.worker.ping({ timeoutMs: PONG_MS });
  } catch (error) {
    if (codeOf(error) !== "AGENT_TIMEOUT") throw await child.explain(error);
    throw child.condemn(`its worker stood still for ${PONG_MS} ms`);
  }
}

function late(request: WorkerRequest, timeoutMs: number, cause: unknown): FlurryError {
  const message = `The worker has not answered ${nameOf(request)} within ${timeoutMs} ms`;
  return new FlurryError("WORKER_TIMEOUT", message, { cause });
}

/** Whether an error leaves no child behind. */
function isLost(error: unknown): boolean {
  const code = codeOf(error);
  return code === "CHILD_DIED" || code === "AGENT_CLOSED" || code === "AGENT_PROTOCOL";
}

/** For messages; without the query, which may hold secrets. */
function nameOf({ method, url }: WorkerRequest): string {
  return `${method} ${url.split("?", 1)[0]!.slice(0, 200)}`;
}

/** Whether a promise settles, in whichever way, within so many milliseconds. */
async function within(promise: Promise<unknown>, ms: number): Promise<boolean> {
  const settled = promise.then(
    () => true,
    () => true,
  );
  const limit = new AbortController();
  try {
    return await Promise.race([settled, sleep(ms, false, { signal: limit.signal })]);
  } finally {
    limit.abort();
  }
}
