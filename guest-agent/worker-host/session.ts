import { encodeData, encodeMessage } from "../protocol/codec.ts";
import { MARKER, streams } from "../protocol/constants.ts";
import { AgentError } from "../protocol/errors.ts";
import {
  OUTBOUND_ID_MIN,
  type WorkerRemoteCode,
  type WorkerType,
  workerLimits,
  workerTypes,
} from "../protocol/worker/constants.ts";
import { BadMessage, type HostMessage, parseHostMessage } from "../protocol/worker/host-messages.ts";
import type { Outbox } from "../protocol/worker/outbox.ts";
import { Operation } from "./operation.ts";
import type { OutboundCalls } from "./outbound-calls.ts";
import type { Records } from "./records.ts";

type Of<T extends HostMessage["type"]> = Extract<HostMessage, { type: T }>;

/** Messages that one answer ends. */
export type Question = Of<"HELLO" | "PING" | "QUIESCE" | "SETUP" | "SHUTDOWN" | "LOAD" | "FORKED">;
/** Messages that begin an operation. */
export type OperationStart = Of<"REQUEST" | "TASK" | "SCHEDULED">;

/** Answers with a type and fields. */
export type Reply = (type: WorkerType, fields?: Record<string, unknown>) => void;

/** Who does what a host asks for. */
export interface SessionOwner {
  onQuestion(question: Question, reply: Reply, session: Session): void;
  /** Why it cannot be done now, or undefined if it has begun. */
  onOperation(start: OperationStart, operation: Operation): Refusal | undefined;
}

export interface Refusal {
  code: WorkerRemoteCode;
  message: string;
}

/** What one host says and is told, from its marker to the next one. */
export class Session {
  readonly #outbox: Outbox;
  readonly #records: Records;
  readonly #calls: OutboundCalls;
  readonly #owner: SessionOwner;
  readonly #operations = new Map<number, Operation>();
  #isQuiet = false;
  #isClosed = false;

  constructor(outbox: Outbox, records: Records, calls: OutboundCalls, owner: SessionOwner) {
    this.#outbox = outbox;
    this.#records = records;
    this.#calls = calls;
    this.#owner = owner;
    outbox.push(MARKER);
    records.attach((frame) => outbox.push(frame));
    calls.attach({
      send: (type, id, fields) => this.#send(id, type, fields),
      sendData: (id, chunk) => this.#sendData(id, chunk),
    });
  }

  /** Payload of one frame, only valid during the call. */
  onPayload(payload: Uint8Array): void {
    if (this.#isQuiet) {
      this.#isQuiet = false;
      this.#records.resume((frame) => this.#outbox.push(frame));
      this.#calls.resume();
    }
    let message: HostMessage;
    try {
      message = parseHostMessage(payload);
    } catch (error) {
      if (!(error instanceof BadMessage)) throw error;
      this.#refuse(error.id, { code: "BAD_MESSAGE", message: error.message });
      return;
    }
    try {
      this.#dispatch(message);
    } catch (error) {
      if (!(error instanceof AgentError)) throw error;
      const reason = "more data than credit, more credit than a window, or data of a stream that is none";
      this.#operations.get(message.id)?.fail("FLOW", `The host sent ${reason}`);
    }
  }

  /** The stream made no sense. */
  onBroken(): void {
    this.#refuse(0, { code: "FRAME_TOO_LARGE", message: "The host sent a frame above the cap" });
    this.close();
  }

  /** The host is gone: nobody is told anything any more. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#records.detach();
    this.#calls.detach();
    const operations = [...this.#operations.values()];
    this.#operations.clear();
    for (const operation of operations) operation.onClose();
  }

  /** Says this as the last thing; what the worker writes from now on waits for the host's next word. */
  quiet(reply: Reply): void {
    this.#records.detach();
    this.#calls.hold();
    this.#isQuiet = true;
    reply("QUIESCED");
  }

  /** Settles when everything that was said has left. */
  flushed(): Promise<void> {
    return this.#outbox.empty();
  }

  #dispatch(message: HostMessage): void {
    if (message.id >= OUTBOUND_ID_MIN && isOfStream(message)) {
      this.#calls.onMessage(message);
      return;
    }
    const operation = this.#operations.get(message.id);
    switch (message.type) {
      case "REQUEST":
      case "TASK":
      case "SCHEDULED":
        this.#start(message);
        break;
      case "DATA":
        operation?.onData(message.data);
        break;
      case "END":
        operation?.onEnd();
        break;
      case "CREDIT":
        this.#onCredit(message, operation);
        break;
      case "CANCEL":
        operation?.cancel();
        break;
      case "ANSWER":
      case "ABORT":
      case "ERROR":
        this.#refuse(message.id, { code: "BAD_MESSAGE", message: `${message.type} for an id of the host` });
        break;
      case "UNKNOWN":
        this.#refuse(message.id, { code: "UNKNOWN_TYPE", message: `There is no type ${message.number}` });
        break;
      default:
        this.#owner.onQuestion(message, (type, fields) => this.#send(message.id, type, fields), this);
    }
  }

  #onCredit(message: Of<"CREDIT">, operation: Operation | undefined): void {
    if (message.stream === streams.OUT) operation?.onCredit(message.bytes);
    else if (message.stream === streams.ERR && !this.#records.addCredit(message.bytes)) {
      this.#refuse(0, { code: "FLOW", message: "The host gave more credit for the log than a window" });
      this.close();
    }
  }

  #start(start: OperationStart): void {
    const { id } = start;
    const refusal =
      id === 0 || id >= OUTBOUND_ID_MIN
        ? ({ code: "BAD_MESSAGE", message: `The id ${id} is not the host's to choose` } as const)
        : this.#operations.has(id)
          ? ({ code: "ID_IN_USE", message: `The id ${id} is in use` } as const)
          : this.#operations.size >= workerLimits.REQUESTS_MAX
            ? ({ code: "LIMIT", message: `${this.#operations.size} requests are running` } as const)
            : undefined;
    if (refusal) {
      this.#refuse(id, refusal);
      return;
    }
    const hasBody = start.type === "TASK" || (start.type === "REQUEST" && start.body);
    const maxBytes = start.type === "TASK" ? workerLimits.TASK_MAX : workerLimits.BODY_MAX;
    const operation = new Operation(this.#channel(id), hasBody ? maxBytes : undefined);
    this.#operations.set(id, operation);
    const late = this.#owner.onOperation(start, operation);
    if (late) operation.fail(late.code, late.message);
  }

  #channel(id: number) {
    return {
      send: (type: WorkerType, fields?: Record<string, unknown>) => this.#send(id, type, fields),
      sendData: (chunk: Uint8Array) => this.#sendData(id, chunk),
      release: () => {
        this.#operations.delete(id);
      },
    };
  }

  async #sendData(id: number, chunk: Uint8Array): Promise<void> {
    if (this.#isClosed) return;
    this.#outbox.push(encodeData(id, streams.OUT, chunk));
    await this.#outbox.room();
  }

  #refuse(id: number, { code, message }: Refusal): void {
    this.#send(id, "ERROR", { code, message: message.slice(0, workerLimits.MESSAGE_MAX) });
  }

  #send(id: number, type: WorkerType, fields?: Record<string, unknown>): void {
    if (!this.#isClosed) this.#outbox.push(encodeMessage(workerTypes[type], id, fields));
  }
}

/** What may be said of a request of the guest's own. */
function isOfStream({ type }: HostMessage): boolean {
  return ["ANSWER", "DATA", "END", "ABORT", "CREDIT", "CANCEL", "ERROR"].includes(type);
}
