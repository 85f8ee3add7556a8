import { streams } from "../constants.ts";
import type { WaitOptions } from "../deadline.ts";
import type { AgentErrorCode } from "../errors.ts";
import { InboundStream, OutboundStream } from "../flow.ts";
import { refused, watchWait } from "./ask.ts";
import { type BodyPump, pumpBody, type WorkerBody } from "./body-pump.ts";
import type { LostError, WorkerConnection, WorkerMessageHandler } from "./connection.ts";
import type { WorkerType } from "./constants.ts";
import { WorkerError, type WorkerErrorCode } from "./errors.ts";
import type { DoneInfo, GuestMessage } from "./guest-messages.ts";
import type { HeaderList } from "./headers.ts";

/**
 * The time for an answer begins anew with so many bytes of the request's body that the worker has taken: a long
 * body may come by a slow line, and a worker that reads all of it first is not late by that.
 */
const ANEW_BYTES = 1 << 20;

/** What begins an exchange. */
export interface ExchangeStart {
  /** For error messages, such as `GET /x`. */
  what: string;
  type: WorkerType;
  fields: Record<string, unknown>;
  body: WorkerBody | undefined;
  /** Bytes, of each body. */
  maxRequestBytes: number;
  maxResponseBytes: number;
}

/** The head of a response. */
export interface ResponseHead {
  status: number;
  headers: HeaderList;
}

/**
 * One request, task or event: a body to the guest, a body back, and the guest's DONE. Its id is taken
 * until then, also when nobody here waits any more.
 */
export class Exchange implements WorkerMessageHandler {
  /** The response's head; only a request has one. */
  readonly head: Promise<ResponseHead>;
  /** What the guest sends: the response's body, or a task's value as JSON. */
  readonly body: ReadableStream<Uint8Array>;
  /** The guest has finished with it. */
  readonly done: Promise<DoneInfo>;
  readonly #connection: WorkerConnection;
  readonly #start: ExchangeStart;
  readonly #head = Promise.withResolvers<ResponseHead>();
  readonly #done = Promise.withResolvers<DoneInfo>();
  readonly #inbound: InboundStream;
  readonly #outbound: OutboundStream;
  readonly #timeoutMs: number | undefined;
  #deadline: Disposable;
  readonly #abort: Disposable;
  readonly #id: number;
  #pump: BodyPump | undefined;
  #state: "waiting" | "answered" | "ended" | "abandoned" = "waiting";
  #received = 0;
  /** Bytes of the request's body that the guest has taken since the time for its answer began. */
  #taken = 0;
  #failure: WorkerError | undefined;
  #onReleased: (() => void) | undefined;

  /**
   * @param onReleased - called once, when the id is free again
   * @throws WorkerError ABORTED, AGENT_CLOSED, BAD_ARGUMENT
   */
  constructor(
    connection: WorkerConnection,
    start: ExchangeStart,
    options: WaitOptions,
    onReleased: () => void,
  ) {
    this.#connection = connection;
    this.#onReleased = onReleased;
    this.#start = start;
    this.head = this.#head.promise;
    this.done = this.#done.promise;
    // Either may have nobody waiting; what failed is also seen in the body.
    this.head.catch(() => undefined);
    this.done.catch(() => undefined);
    this.#inbound = new InboundStream({
      credit: (bytes) => connection.send("CREDIT", this.#id, { s: streams.OUT, n: bytes }),
      cancel: () => this.#abandon(undefined),
    });
    this.body = this.#inbound.readable;
    this.#outbound = new OutboundStream({
      data: (chunk) => connection.sendData(this.#id, streams.IN, chunk),
      end: () => connection.send("END", this.#id, { s: streams.IN }),
    });
    const { signal, timeoutMs } = options;
    this.#timeoutMs = timeoutMs;
    // Time is for the answer to begin, or, without a head, for all of it; the signal is for all of it.
    this.#abort = watchWait(start.what, { signal }, (error) => this.#abandon(error));
    this.#deadline = this.#newDeadline();
    this.#id = this.#open();
    if (start.body !== undefined) this.#send(start.body);
  }

  /** Why it failed, if it did; the body's error is the same, less some codes. */
  get failure(): WorkerError | undefined {
    return this.#failure;
  }

  onMessage(message: GuestMessage): void {
    const { what } = this.#start;
    switch (message.type) {
      case "RESPONSE":
        this.#onResponse(message);
        break;
      case "DATA":
        this.#onData(message.stream, message.data);
        break;
      case "END":
        this.#mustBeOut(message.stream);
        this.#endBody(undefined);
        break;
      case "ABORT": {
        this.#mustBeOut(message.stream);
        const remote = "WORKER_FAILED";
        this.#endBody(new WorkerError("AGENT_REFUSED", `${what} broke off: ${message.message}`, { remote }));
        break;
      }
      case "CREDIT":
        this.#outbound.addCredit(message.bytes);
        this.#onTaken(message.bytes);
        break;
      case "CANCEL":
        this.#stopSending(new WorkerError("AGENT_REFUSED", `${what}: the worker reads no more`));
        break;
      case "DONE": {
        const { waited, failed, unsettled } = message;
        this.#onDone({ waited, failed, unsettled });
        break;
      }
      case "ERROR":
        this.#release();
        this.#fail(this.#refusal(message));
        break;
      default:
        throw new WorkerError("AGENT_PROTOCOL", `The guest answered a request with ${message.type}`);
    }
  }

  onClose(error: LostError): void {
    this.#release();
    this.#fail(error);
  }

  #newDeadline(): Disposable {
    const { what } = this.#start;
    return watchWait(what, { timeoutMs: this.#timeoutMs }, (error) => this.#abandon(error));
  }

  #onTaken(bytes: number): void {
    this.#taken += bytes;
    if (this.#taken < ANEW_BYTES || this.#start.type !== "REQUEST" || this.#state !== "waiting") return;
    this.#taken = 0;
    this.#deadline[Symbol.dispose]();
    this.#deadline = this.#newDeadline();
  }

  #open(): number {
    const { type, fields } = this.#start;
    let id: number | undefined;
    try {
      id = this.#connection.open(this);
      this.#connection.send(type, id, fields);
      return id;
    } catch (error) {
      if (id !== undefined) this.#connection.release(id);
      this.#stopWaiting();
      throw error;
    }
  }

  #send(body: WorkerBody): void {
    let sent = 0;
    const write = async (chunk: Uint8Array) => {
      sent += chunk.length;
      if (sent > this.#start.maxRequestBytes) {
        const message = `${this.#start.what}: the body has more than ${this.#start.maxRequestBytes} bytes`;
        throw new WorkerError("BODY_TOO_LARGE", message);
      }
      await this.#outbound.write(chunk);
    };
    this.#pump = pumpBody(body, write);
    this.#pump.finished.then(
      () => this.#outbound.end(),
      (error) => this.#onSourceFailed(error),
    );
  }

  /** The source's error is the caller's own: it comes back as the cause. */
  #onSourceFailed(error: unknown): void {
    if (this.#state === "abandoned" || this.#state === "ended" || this.#pump === undefined) return;
    const own = error instanceof WorkerError ? error : undefined;
    const reason =
      own ?? new WorkerError("ABORTED", `${this.#start.what}: the body could not be read`, { cause: error });
    this.#abandon(reason);
  }

  #onResponse(message: Extract<GuestMessage, { type: "RESPONSE" }>): void {
    if (this.#state === "abandoned") return;
    if (this.#start.type !== "REQUEST" || this.#state !== "waiting") {
      throw new WorkerError("AGENT_PROTOCOL", "The guest sent a response's head that nobody waits for");
    }
    this.#state = "answered";
    this.#deadline[Symbol.dispose]();
    this.#head.resolve({ status: message.status, headers: message.headers });
    if (!message.body) this.#endBody(undefined);
  }

  #onData(stream: number, data: Uint8Array): void {
    this.#mustBeOut(stream);
    if (this.#start.type === "REQUEST" && this.#state === "waiting") {
      throw new WorkerError("AGENT_PROTOCOL", "The guest sent a response's body before its head");
    }
    if (this.#state === "ended") {
      throw new WorkerError("AGENT_PROTOCOL", "The guest sent data after the end of a body");
    }
    this.#received += data.length;
    this.#inbound.push(data);
    if (this.#received <= this.#start.maxResponseBytes || this.#state === "abandoned") return;
    const message = `${this.#start.what}: the answer has more than ${this.#start.maxResponseBytes} bytes`;
    this.#abandon(new WorkerError("AGENT_REFUSED", message, { remote: "BODY_TOO_LARGE" }));
  }

  #onDone(info: DoneInfo): void {
    if (this.#state !== "ended" && this.#state !== "abandoned") {
      throw new WorkerError("AGENT_PROTOCOL", "The guest was done with a request before it had answered");
    }
    this.#release();
    this.#stopWaiting();
    this.#done.resolve(info);
    this.#stopSending(new WorkerError("AGENT_REFUSED", `${this.#start.what} is over`));
  }

  #endBody(error: WorkerError<AgentErrorCode> | undefined): void {
    if (this.#state === "abandoned") return;
    if (this.#start.type === "REQUEST" && this.#state !== "answered") {
      throw new WorkerError("AGENT_PROTOCOL", "The guest ended a response's body before its head, or twice");
    }
    this.#state = "ended";
    this.#inbound.end(error);
    if (this.#start.type === "REQUEST") this.#abort[Symbol.dispose]();
  }

  #mustBeOut(stream: number): void {
    if (stream !== streams.OUT) {
      throw new WorkerError("AGENT_PROTOCOL", "The guest wrote to a request's own body");
    }
  }

  /** Nobody wants the answer any more; the id stays taken until the guest has cleaned up. */
  #abandon(error: WorkerError | undefined): void {
    if (this.#state === "abandoned") return;
    this.#state = "abandoned";
    this.#connection.send("CANCEL", this.#id, { s: streams.OUT });
    this.#fail(error ?? new WorkerError("ABORTED", `${this.#start.what} was cancelled`));
  }

  #fail(error: WorkerError): void {
    if (this.#state !== "ended") this.#state = "abandoned";
    this.#failure ??= error;
    this.#stopWaiting();
    this.#head.reject(error);
    // Who gave up on a response still learns when the guest is done with it.
    const isGivenUp = error.code === "ABORTED" || error.code === "AGENT_TIMEOUT";
    if (!isGivenUp || this.#start.type !== "REQUEST") this.#done.reject(error);
    this.#inbound.end(streamError(error));
    this.#stopSending(error);
  }

  #stopSending(error: WorkerError): void {
    const pump = this.#pump;
    this.#pump = undefined;
    this.#outbound.fail(streamError(error));
    pump?.stop(error);
  }

  #stopWaiting(): void {
    this.#deadline[Symbol.dispose]();
    this.#abort[Symbol.dispose]();
  }

  #release(): void {
    this.#connection.release(this.#id);
    this.#onReleased?.();
    this.#onReleased = undefined;
  }

  #refusal(message: Extract<GuestMessage, { type: "ERROR" }>): WorkerError {
    if (this.#start.type === "REQUEST" || message.code !== "WORKER_FAILED") {
      return refused(this.#start.what, message);
    }
    return new WorkerError("TASK_FAILED", message.message, {
      remote: message.code,
      workerStack: message.stack,
    });
  }
}

/** The streams are the agent's, and know its codes only. */
function streamError(error: WorkerError): WorkerError<AgentErrorCode> {
  const { code, message } = error;
  if (isAgentCode(code)) return error as WorkerError<AgentErrorCode>;
  return new WorkerError("AGENT_REFUSED", message, { cause: error, remote: error.remote });
}

function isAgentCode(code: WorkerErrorCode): code is AgentErrorCode {
  return code !== "TASK_FAILED" && code !== "BODY_TOO_LARGE";
}
