import { AgentError, type AgentErrorCode } from "../errors.ts";

/**
 * AGENT_CLOSED: the channel is gone, the message says why. AGENT_TIMEOUT: no answer in time.
 * AGENT_REFUSED: the worker host said no, or a response broke off (`remote` says which).
 * AGENT_PROTOCOL: the guest broke the protocol; the channel is closed. TASK_FAILED: the worker's own
 * error, with `workerStack`. BODY_TOO_LARGE: the request's body. ABORTED: the caller's signal.
 * BAD_ARGUMENT: what cannot be sent.
 */
export type WorkerErrorCode = AgentErrorCode | "TASK_FAILED" | "BODY_TOO_LARGE";

export interface WorkerErrorDetails {
  cause?: unknown;
  /** One of `workerRemoteCodes` if the guest is ours. */
  remote?: string | undefined;
  errno?: string | undefined;
  workerStack?: string | undefined;
}

/** Whatever goes wrong between the host and a worker host. */
export class WorkerError<Code extends WorkerErrorCode = WorkerErrorCode> extends Error {
  readonly code: Code;
  /** The guest's own code; one of `workerRemoteCodes` if the guest is ours. */
  readonly remote: string | undefined;
  /** `E2BIG` for what no frame holds. */
  readonly errno: string | undefined;
  /** The stack of the error inside the worker, in terms of its sources. Text of the guest: not to be trusted. */
  readonly workerStack: string | undefined;

  constructor(code: Code, message: string, details: WorkerErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "WorkerError";
    this.code = code;
    this.remote = details.remote;
    this.errno = details.errno;
    this.workerStack = details.workerStack;
  }
}

/** What the parts that are the agent's throw, as this protocol's error. Anything else is thrown on. */
export function asWorkerError(error: unknown): WorkerError<AgentErrorCode> {
  if (!(error instanceof AgentError)) throw error;
  const { code, message, remote, errno } = error;
  return new WorkerError(code, message, { cause: error, remote, errno });
}
