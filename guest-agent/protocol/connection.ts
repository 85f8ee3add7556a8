import type { Socket } from "node:net";
import { encodeData, encodeMessage, FrameReader } from "./codec.ts";
import { MARKER, messageTypes, type StreamNumber } from "./constants.ts";
import { AgentError } from "./errors.ts";
import { type GuestMessage, parseMessage } from "./messages.ts";

/** Whoever waits for messages with one id. */
export interface MessageHandler {
  /** May throw an AgentError AGENT_PROTOCOL, which ends the connection. */
  onMessage(message: GuestMessage): void;
  /** The connection is gone. */
  onClose(error: AgentError): void;
}

export interface ConnectionOptions {
  /** Named in errors, such as `child 7`. */
  name: string;
  /** What the other side's process said last, put into the error when the channel closes. */
  stderr: (() => string) | undefined;
}

/** Frames over one socket, given out by id. It owns the socket. */
export class Connection {
  /** Resolves with the reason once the channel is gone; never rejects. */
  readonly closed: Promise<AgentError>;
  readonly #socket: Socket;
  readonly #options: ConnectionOptions;
  readonly #reader = new FrameReader();
  readonly #handlers = new Map<number, MessageHandler>();
  readonly #resolveClosed: (reason: AgentError) => void;
  #reason: AgentError | undefined;
  #nextId = 1;
  #greeted = false;
  #drained: PromiseWithResolvers<void> | undefined;

  constructor(socket: Socket, options: ConnectionOptions) {
    this.#socket = socket;
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<AgentError>();
    this.closed = promise;
    this.#resolveClosed = resolve;
    socket.on("data", (chunk: Uint8Array) => this.#receive(chunk));
    socket.resume(); // whoever handed it over may have paused it, to lose nothing
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

  /** Why the channel is gone, if it is. */
  get reason(): AgentError | undefined {
    return this.#reason;
  }

  /** Registers a handler under a fresh id. @throws AgentError AGENT_CLOSED */
  open(handler: MessageHandler): number {
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

  /** Sends one message, in one write. */
  send(type: keyof typeof messageTypes, id: number, fields?: Record<string, unknown>): void {
    this.#write(encodeMessage(messageTypes[type], id, fields));
  }

  /** Sends one message that has no answer. @throws AgentError AGENT_CLOSED */
  notify(type: keyof typeof messageTypes, fields?: Record<string, unknown>): void {
    if (this.#reason) throw this.#reason;
    const id = this.#nextId;
    this.#advance();
    this.send(type, id, fields);
  }

  /** Sends one chunk; resolves when the socket takes more, also when the channel closes. */
  async sendData(id: number, stream: StreamNumber, chunk: Uint8Array): Promise<void> {
    if (this.#write(encodeData(id, stream, chunk)) || this.#reason) return;
    this.#drained ??= Promise.withResolvers<void>();
    await this.#drained.promise;
  }

  /** Closes the channel; everything that waits fails with `reason`. */
  destroy(reason: AgentError): void {
    if (this.#reason) return;
    this.#reason = reason;
    this.#socket.destroy();
    this.#drain();
    const handlers = [...this.#handlers.values()];
    this.#handlers.clear();
    for (const handler of handlers) handler.onClose(reason);
    this.#resolveClosed(reason);
  }

  #advance(): void {
    this.#nextId = this.#nextId === 0xffffffff ? 1 : this.#nextId + 1;
  }

  #write(frame: Uint8Array): boolean {
    if (this.#reason) return false;
    if (this.#greeted) return this.#socket.write(frame);
    this.#greeted = true;
    const first = new Uint8Array(MARKER.length + frame.length);
    first.set(MARKER);
    first.set(frame, MARKER.length);
    return this.#socket.write(first);
  }

  #drain(): void {
    this.#drained?.resolve();
    this.#drained = undefined;
  }

  #receive(chunk: Uint8Array): void {
    if (this.#reason) return;
    try {
      this.#reader.push(chunk, (payload) => this.#dispatch(parseMessage(payload)));
    } catch (error) {
      if (!(error instanceof AgentError)) throw error;
      this.destroy(error);
    }
  }

  #dispatch(message: GuestMessage): void {
    if (this.#reason) return;
    if (message.id === 0 && message.type === "ERROR") {
      throw new AgentError("AGENT_PROTOCOL", `The guest could not read a frame: ${message.message}`, {
        remote: message.code,
      });
    }
    // Answers to what was given up here, and the boot hello, have nobody waiting: they are dropped.
    this.#handlers.get(message.id)?.onMessage(message);
  }

  #lose(what: string, cause?: unknown): void {
    if (this.#reason) return;
    const stderr = this.#options.stderr?.().trim();
    const tail = stderr ? `\n${stderr}` : "";
    this.destroy(
      new AgentError("AGENT_CLOSED", `Lost the agent of ${this.#options.name}: ${what}${tail}`, { cause }),
    );
  }
}
