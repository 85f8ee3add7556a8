import type { WaitOptions } from "../deadline.ts";
import type { WorkerBody } from "./body-pump.ts";
import type { DoneInfo, WorkerFault, WorkerLog } from "./guest-messages.ts";
import type { HeaderList } from "./headers.ts";

export interface WorkerClientOptions {
  /** Whose worker this is, for error messages. @default "the VM" */
  name?: string | undefined;
  /** What the VM's process said last; put into AGENT_CLOSED errors. */
  stderr?: (() => string) | undefined;
  /** Gets what the worker writes. It must not throw. */
  onLog?: ((log: WorkerLog) => void) | undefined;
  /** Gets the worker's errors outside of its handlers, and its `process.exit`. It must not throw. */
  onFault?: ((fault: WorkerFault) => void) | undefined;
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
