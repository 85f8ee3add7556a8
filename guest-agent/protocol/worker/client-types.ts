import type { WaitOptions } from "../deadline.ts";
import type { WorkerBody } from "./body-pump.ts";
import type { DoneInfo, OutboundHead, WorkerFault, WorkerLog } from "./guest-messages.ts";
import type { HeaderList } from "./headers.ts";
import type { AnswerInfo } from "./host-messages.ts";

export interface WorkerClientOptions {
  /** Whose worker this is, for error messages. @default "the VM" */
  name?: string | undefined;
  /** What the VM's process said last; put into AGENT_CLOSED errors. */
  stderr?: (() => string) | undefined;
  /** Gets what the worker writes. It must not throw. */
  onLog?: ((log: WorkerLog) => void) | undefined;
  /** Gets the worker's errors outside of its handlers, and its `process.exit`. It must not throw. */
  onFault?: ((fault: WorkerFault) => void) | undefined;
  /** Makes the worker's own requests to others. @default refuses them all */
  outbound?: OutboundHandler | undefined;
  /** Bytes of log that are taken per second; what the worker writes beyond is dropped in the guest. @default 1 MiB */
  logBytesPerSecond?: number | undefined;
  /** Requests and tasks at once; more are refused here with LIMIT. @default 128, which is also the most */
  maxRequests?: number | undefined;
  /** Bytes of one request's body. @default 1 GiB, which is also the most */
  maxRequestBytes?: number | undefined;
  /** Bytes of one response's body. @default 1 GiB, which is also the most */
  maxResponseBytes?: number | undefined;
  /** For `hello`, `ping`, `quiesce` and `shutdown` that name no `timeoutMs` of their own. @default 30000 */
  requestTimeoutMs?: number | undefined;
}

/** A request of the worker to somebody else. */
export interface OutboundRequest extends OutboundHead {
  /** What is not read holds the worker up; cancelling it says that no more is wanted. */
  body: ReadableStream<Uint8Array> | undefined;
}

export interface OutboundResponse extends Omit<AnswerInfo, "statusText"> {
  statusText?: string | undefined;
  /** None for an answer that has none, as one to HEAD. */
  body?: WorkerBody | undefined;
}

/**
 * Makes one request for a worker. Text of the guest is not to be trusted: where the URL leads, and each
 * redirect, is the handler's to check. What it throws becomes a TypeError of the worker, with the message;
 * an error with the code OUTBOUND_FORBIDDEN says that this worker may not, any other that it went wrong.
 *
 * @param signal - fires when nobody wants the answer any more: the worker gave up, or its VM is gone
 */
export type OutboundHandler = (request: OutboundRequest, signal: AbortSignal) => Promise<OutboundResponse>;

export interface WorkerRequest {
  method: string;
  /** Absolute. */
  url: string;
  /** In order; a header may be there several times. Values hold one character for each byte. */
  headers?: HeaderList | undefined;
  body?: WorkerBody | undefined;
}

export interface WorkerFetchOptions extends WaitOptions {
  /** Named in the log records of this request, at most 256 characters. @default a number */
  requestId?: string | undefined;
}

export interface WorkerResponse {
  status: number;
  /** As the worker gave them: names in lower case, every `set-cookie` by itself. */
  headers: HeaderList;
  /** What is not read holds the worker up. Cancelling it aborts the worker's request. */
  body: ReadableStream<Uint8Array>;
  /** Resolves when the worker has settled all that it gave to `waitUntil`, or its time for that is over. */
  done: Promise<DoneInfo>;
}

/** One request of a warm-up. */
export interface WarmedRequest {
  status: number;
  /** Of the body. */
  bytes: number;
  ms: number;
}

export interface WarmInfo {
  /** Milliseconds that the worker's `setup()` took. */
  setupMs: number;
  requests: WarmedRequest[];
}
