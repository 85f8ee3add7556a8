import { InboundStream, OutboundStream } from "../protocol/flow.ts";
import type { WorkerType } from "../protocol/worker/constants.ts";
import type { AnswerInfo, HostMessage } from "../protocol/worker/host-messages.ts";
import { bytesOf } from "./chunks.ts";

/** What a call may say to the host. */
export interface CallChannel {
  send(type: WorkerType, fields: Record<string, unknown>): void;
  sendData(chunk: Uint8Array): Promise<void>;
  /** The id is free. */
  release(): void;
}

/** What a call brings: a head, and a body if there is one. */
export interface CallAnswer extends AnswerInfo {
  body: ReadableStream<Uint8Array> | null;
}

/** Fetch's kind of failure, for what went wrong outside of the worker. */
export function fetchError(url: string, reason: string): TypeError {
  return new TypeError(`Cannot fetch ${url.slice(0, 200)}: ${reason}`);
}

/** One request of the worker that is under way. It is over with the last byte of its answer, or an error. */
export class OutboundCall {
  /** For messages. */
  readonly url: string;
  readonly #channel: CallChannel;
  readonly #answer = Promise.withResolvers<CallAnswer>();
  readonly #outbound: OutboundStream;
  readonly #inbound: InboundStream;
  readonly #signal: AbortSignal;
  readonly #onAbort = () => this.cancel(this.#signal.reason);
  #reader: ReadableStreamDefaultReader<unknown> | undefined;
  #isAnswered = false;
  #isOver = false;

  constructor(channel: CallChannel, url: string, signal: AbortSignal) {
    this.#channel = channel;
    this.url = url;
    this.#signal = signal;
    this.#outbound = new OutboundStream({
      data: (chunk) => channel.sendData(chunk),
      end: () => channel.send("END", { s: 1 }),
    });
    this.#inbound = new InboundStream({
      credit: (bytes) => {
        if (!this.#isOver) channel.send("CREDIT", { s: 0, n: bytes });
      },
      cancel: () => this.cancel(new DOMException("The body was cancelled", "AbortError")),
    });
    signal.addEventListener("abort", this.#onAbort, { once: true });
  }

  get answer(): Promise<CallAnswer> {
    return this.#answer.promise;
  }

  /** Sends the request's body. Its failure is the call's. */
  async send(body: ReadableStream<unknown>): Promise<void> {
    const reader = body.getReader();
    this.#reader = reader;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (this.#isOver) return;
        if (done) break;
        const bytes = bytesOf(value);
        if (bytes.length > 0) await this.#outbound.write(bytes);
      }
      this.#outbound.end();
    } catch (error) {
      this.cancel(error);
    }
  }

  /** @throws AgentError AGENT_PROTOCOL if the host had no credit for it, or gave more than a window */
  onMessage(message: HostMessage): void {
    switch (message.type) {
      case "ANSWER":
        this.#onAnswer(message);
        break;
      case "DATA":
        this.#inbound.push(message.data);
        break;
      case "END":
        this.#inbound.end();
        this.#end(fetchError(this.url, "it is over"));
        break;
      case "ABORT":
        this.fail(fetchError(this.url, `the answer broke off: ${message.message}`));
        break;
      case "CREDIT":
        this.#outbound.addCredit(message.bytes);
        break;
      case "CANCEL":
        this.#stopSending(fetchError(this.url, "the other side reads no more"));
        break;
      case "ERROR":
        this.fail(Object.assign(fetchError(this.url, message.message), { code: message.code }));
        break;
      default: // nothing else is said of a guest's own request
    }
  }

  /** Nobody wants the answer any more. */
  cancel(reason: unknown): void {
    if (this.#isOver) return;
    this.#channel.send("CANCEL", { s: 0 });
    this.fail(reason);
  }

  /** Ends it without a word to the host. */
  fail(reason: unknown): void {
    if (this.#isOver) return;
    this.#answer.reject(reason);
    this.#inbound.end(reason as Error); // what a signal was aborted with need not be an Error
    this.#end(reason);
  }

  #onAnswer(message: Extract<HostMessage, { type: "ANSWER" }>): void {
    if (this.#isAnswered) return;
    this.#isAnswered = true;
    const { status, statusText, headers, url, redirected } = message;
    const body = message.body ? this.#inbound.readable : null;
    this.#answer.resolve({ status, statusText, headers, url, redirected, body });
    if (body === null) this.#end(fetchError(this.url, "it is over"));
  }

  #end(reason: unknown): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#signal.removeEventListener("abort", this.#onAbort);
    this.#stopSending(reason);
    this.#channel.release();
  }

  #stopSending(reason: unknown): void {
    this.#outbound.fail(reason as Error);
    this.#reader?.cancel(reason).catch(() => undefined); // the source's own trouble, and of no use to anyone
  }
}
