import type { Socket } from "node:net";
import { encodeData, encodeMessage, FrameReader } from "../codec.ts";
import { MARKER, type StreamNumber } from "../constants.ts";
import { AgentError } from "../errors.ts";
import { OUTBOUND_ID_MIN, type WorkerType, workerTypes } from "./constants.ts";
import { asWorkerError, WorkerError } from "./errors.ts";
import { type GuestMessage, parseGuestMessage } from "./guest-messages.ts";
import { Outbox } from "./outbox.ts";

/** Why a channel is gone. */
export type LostError = WorkerError<"AGENT_CLOSED" | "AGENT_PROTOCOL">;

/** Whoever waits for messages with one id. */
export interface WorkerMessageHandler {
  /** May throw an AgentError or WorkerError AGENT_PROTOCOL, which ends the connection. */
  onMessage(message: GuestMessage): void;
  /** The connection is gone. */
  onClose(error: LostError): void;
}

export interface WorkerConnectionOptions {
  /** Whose worker this is, for error messages. */
  name: string;
  /** What the VM's process said last, put into the error when the channel closes. */
  stderr: (() => string) | undefined;
  /** Gets the messages that belong to nobody's id: LOG and FAULT. May throw as a handler's `onMessage`. */
  onRecord: (message: Extract<GuestMessage, { type: "LOG" | "FAULT" }>) => void;
  /** Gets the messages with ids that the guest has chosen. */
  outbound: WorkerMessageHandler;
}

/** Frames over one socket, given out by id. It owns the socket. */
export class WorkerConnection {
  /** Resolves with the reason once the channel is gone; never rejects. */
  readonly closed: Promise<LostError>;
  readonly #socket: Socket;
  readonly #options: WorkerConnectionOptions;
  readonly #reader = new FrameReader();
  readonly #outbox: Outbox;
  readonly #handlers = new Map<number, WorkerMessageHandler>();
  readonly #resolveClosed: (reason: LostError) => void;
  #reason: LostError | undefined;
  #nextId = 1;
  #greeted = false;
  #drained: PromiseWithResolvers<void> | undefined;

  constructor(socket: Socket, options: WorkerConnectionOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#outbox = new Outbox((bytes) => this.#write(bytes));
    const { promise, resolve } = Promise.withResolvers<LostError>();
    this.closed = promise;
    this.#resolveClosed = resolve;
    socket.on("data", (chunk: Uint8Array) => this.#receive(chunk));
    socket.on("drain", () => this.#drain());
    socket.on("error", (error) => this.#lose(`the socket failed: ${error.message}`, error));
    socket.on("end", () => this.#lose("the other side closed it"));
    socket.on("close", () => this.#lose("the socket was closed"));
    if (socket.destroyed) this.#lose("the socket was closed");
    // A socket that was accepted paused stays so, whoever listens.
    socket.resume();
  }

  /** Ids with somebody waiting. */
  get pending(): number {
    return this.#handlers.size;
  }

  /** Registers a handler under a fresh id. @throws WorkerError AGENT_CLOSED */
  open(handler: WorkerMessageHandler): number {
    if (this.#reason) throw this.#reason;
    while (this.#handlers.has(this.#nextId)) this.#advance();
    const id = this.#nextId;
    this.#advance();
    this.#handlers.set(id, handler);
    return id;
  }

  /** Messages for this id are ignored from now on. */
  release(id: number): void {
    this.#handlers.delete(id);
  }

  /** Sends one message. @throws WorkerError BAD_ARGUMENT for what no frame holds */
  send(type: WorkerType, id: number, fields?: Record<string, unknown>): void {
    try {
      this.#push(encodeMessage(workerTypes[type], id, fields));
    } catch (error) {
      throw asWorkerError(error);
    }
  }

  /** Sends one chunk; resolves when there is room for more, also when the channel closes. */
  async sendData(id: number, stream: StreamNumber, chunk: Uint8Array): Promise<void> {
    this.#push(encodeData(id, stream, chunk));
    await this.#outbox.room();
  }

  /** Closes the channel; everything that waits fails with `reason`. */
  destroy(reason: LostError): void {
    if (this.#reason) return;
    this.#reason = reason;
    this.#socket.destroy();
    this.#outbox.close();
    this.#drain();
    const handlers = [...this.#handlers.values()];
    this.#handlers.clear();
    for (const handler of handlers) handler.onClose(reason);
    this.#options.outbound.onClose(reason);
    this.#resolveClosed(reason);
  }

  #advance(): void {
    this.#nextId = this.#nextId === OUTBOUND_ID_MIN - 1 ? 1 : this.#nextId + 1;
  }

  #push(frame: Uint8Array): void {
    if (this.#reason) return;
    // The marker starts a session of ours, and leaves in one write with what comes first in it.
    if (!this.#greeted) this.#outbox.push(MARKER);
    this.#greeted = true;
    this.#outbox.push(frame);
  }

  #write(bytes: Uint8Array): Promise<void> | undefined {
    if (this.#reason || this.#socket.write(bytes)) return undefined;
    this.#drained ??= Promise.withResolvers<void>();
    return this.#drained.promise;
  }

  #drain(): void {
    this.#drained?.resolve();
    this.#drained = undefined;
  }

  #receive(chunk: Uint8Array): void {
    if (this.#reason) return;
    try {
      this.#reader.push(chunk, (payload) => this.#dispatch(parseGuestMessage(payload)));
    } catch (error) {
      const { message, remote } =
        error instanceof WorkerError || error instanceof AgentError ? error : rethrow(error);
      this.destroy(new WorkerError("AGENT_PROTOCOL", message, { cause: error, remote }));
    }
  }

  #dispatch(message: GuestMessage): void {
    if (this.#reason) return;
    if (message.type === "LOG" || message.type === "FAULT") {
      this.#options.onRecord(message);
      return;
    }
    if (message.id === 0 && message.type === "ERROR") {
      throw new WorkerError("AGENT_PROTOCOL", `The guest could not read a frame: ${message.message}`, {
        remote: message.code,
      });
    }
    if (message.id >= OUTBOUND_ID_MIN) {
      this.#options.outbound.onMessage(message);
      return;
    }
    // Answers to what was given up here have nobody waiting: they are dropped.
    this.#handlers.get(message.id)?.onMessage(message);
  }

  #lose(what: string, cause?: unknown): void {
    if (this.#reason) return;
    const stderr = this.#options.stderr?.().trim();
    const tail = stderr ? `\n${stderr}` : "";
    const message = `Lost the worker of ${this.#options.name}: ${what}${tail}`;
    this.destroy(new WorkerError("AGENT_CLOSED", message, { cause }));
  }
}

function rethrow(error: unknown): never {
  throw error;
}
