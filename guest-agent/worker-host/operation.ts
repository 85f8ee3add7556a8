import { AgentError } from "../protocol/errors.ts";
import { InboundStream, OutboundStream } from "../protocol/flow.ts";
import type { WorkerRemoteCode, WorkerType } from "../protocol/worker/constants.ts";
import type { DoneInfo } from "../protocol/worker/guest-messages.ts";

/** What an operation may say to its host. After the host went, it says it to nobody. */
export interface OperationChannel {
  send(type: WorkerType, fields?: Record<string, unknown>): void;
  sendData(chunk: Uint8Array): Promise<void>;
  /** The operation is over: the id is free. */
  release(): void;
}

/** The two bodies of one request, task or event, and how it ends. */
export class Operation {
  readonly #channel: OperationChannel;
  readonly #abort = new AbortController();
  readonly #outbound: OutboundStream;
  readonly #maxInput: number;
  #inbound: InboundStream | undefined;
  #onCancelled: ((reason: unknown) => void) | undefined;
  #received = 0;
  #isOver = false;

  /** @param maxInput - most bytes that the host may send; undefined if it sends no body */
  constructor(channel: OperationChannel, maxInput: number | undefined) {
    this.#channel = channel;
    this.#maxInput = maxInput ?? 0;
    this.#outbound = new OutboundStream({
      data: (chunk) => channel.sendData(chunk),
      end: () => channel.send("END", { s: 1 }),
    });
    if (maxInput === undefined) return;
    this.#inbound = new InboundStream({
      credit: (bytes) => this.#say("CREDIT", { s: 0, n: bytes }),
      cancel: () => this.#say("CANCEL", { s: 0 }),
    });
  }

  /** What the host sends, if it sends anything. */
  get input(): ReadableStream<Uint8Array> | undefined {
    return this.#inbound?.readable;
  }

  /** Fires when nobody wants the answer any more. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Calls `act` when nobody wants the answer any more; there is one such act at a time. */
  whenCancelled(act: (reason: unknown) => void): void {
    this.#onCancelled = act;
  }

  send(type: WorkerType, fields?: Record<string, unknown>): void {
    this.#say(type, fields);
  }

  /** Sends a part of the answer; waits while the host reads none. Throws when nobody wants it any more. */
  write(bytes: Uint8Array): Promise<void> {
    return this.#outbound.write(bytes);
  }

  /** The answer is complete. What the host still sends is of no use. */
  end(): void {
    if (!this.#isOver && !this.signal.aborted) this.#outbound.end();
    this.dropInput();
  }

  /** The answer breaks off here. */
  breakOff(message: string): void {
    this.#say("ABORT", { s: 1, message });
    this.dropInput();
  }

  /** Wants no more of the host's body. */
  dropInput(): void {
    const inbound = this.#inbound;
    if (inbound === undefined || inbound.ended) return;
    inbound.end(new AgentError("ABORTED", "The request is over"));
    this.#say("CANCEL", { s: 0 });
  }

  /** All is settled. */
  done(info: DoneInfo): void {
    this.#finish("DONE", { ...info });
  }

  /** Ends it without an answer. */
  fail(code: WorkerRemoteCode, message: string, stack?: string): void {
    this.#finish("ERROR", { code, message, ...(stack === undefined ? {} : { stack }) });
    this.#stop(new AgentError("ABORTED", message));
  }

  /** @throws AgentError AGENT_PROTOCOL if the host had no credit for it */
  onData(bytes: Uint8Array): void {
    if (this.#inbound === undefined) throw new AgentError("AGENT_PROTOCOL", "The host sent a body to nobody");
    this.#received += bytes.length;
    if (this.#received > this.#maxInput) {
      this.fail("BODY_TOO_LARGE", `The body has more than ${this.#maxInput} bytes`);
      return;
    }
    this.#inbound.push(bytes);
  }

  onEnd(): void {
    this.#inbound?.end();
  }

  /** @throws AgentError AGENT_PROTOCOL if that is more credit than a window */
  onCredit(bytes: number): void {
    this.#outbound.addCredit(bytes);
  }

  /** The host wants no answer any more; it still waits for DONE. */
  cancel(): void {
    this.#stop(new AgentError("ABORTED", "The client went away"));
  }

  /** The host is gone. */
  onClose(): void {
    this.#isOver = true;
    this.#stop(new AgentError("ABORTED", "The host went away"));
  }

  #say(type: WorkerType, fields?: Record<string, unknown>): void {
    if (!this.#isOver) this.#channel.send(type, fields);
  }

  #finish(type: "DONE" | "ERROR", fields: Record<string, unknown>): void {
    if (this.#isOver) return;
    this.#channel.send(type, fields);
    this.#isOver = true;
    this.#channel.release();
  }

  #stop(error: AgentError): void {
    this.#outbound.fail(error);
    this.#inbound?.end(error);
    if (this.#abort.signal.aborted) return;
    this.#abort.abort(new DOMException(error.message, "AbortError"));
    this.#onCancelled?.(error);
  }
}
