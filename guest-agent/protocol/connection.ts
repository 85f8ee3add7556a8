import type { Socket } from "node:net";
import { encodeData, encodeMessage, FrameReader } from "./codec.ts";
import { CALL_IDS, MARKER, messageTypes, type StreamNumber } from "./constants.ts";
import { AgentError } from "./errors.ts";
import { type GuestMessage, parseMessage } from "./messages.ts";

/** Whoever waits for messages with one id. */
export interface MessageHandler {
  /** May throw an AgentError AGENT_PROTOCOL, which ends the connection. */
  onMessage(message: GuestMessage): void;
  /** The connection is gone. */
  onClose(error: AgentError): void;
  /** What of it goes on in a fork of the guest; nothing by default. */
  inheritance?(): Inheritance | undefined;
}

/** A program that was started over the channel of a guest, as it goes on in a fork of that guest. */
export interface Inheritance {
  id: number;
  /** For messages, such as `The program "sh"`. */
  name: string;
  /** Streams that it writes to, still open. */
  open: readonly number[];
  /** It has ended, and others have its streams. */
  hasExited: boolean;
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
  /** Frames that are not to reach the guest now. */
  #held: Uint8Array[] | undefined;
  #onCall: ((call: Extract<GuestMessage, { type: "CALL" }>) => void) | undefined;

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

  /** Registers a handler under an id that the guest knows already. @throws AgentError AGENT_CLOSED */
  openAs(id: number, handler: MessageHandler): void {
    if (this.#reason) throw this.#reason;
    this.#handlers.set(id, handler);
  }

  /** Hears of programs of the guest that ask something of the host. */
  onCall(listener: (call: Extract<GuestMessage, { type: "CALL" }>) => void): void {
    this.#onCall = listener;
  }

  /** What is under way and goes on in forks of the guest. */
  inheritances(): Inheritance[] {
    return [...this.#handlers.values()].flatMap((handler) => handler.inheritance?.() ?? []);
  }

  /** Holds back what is sent from now on. */
  hold(): void {
    this.#held ??= [];
  }

  /** Sends a message that has no answer, and then all that was held back. @throws AgentError AGENT_CLOSED */
  unhold(type?: keyof typeof messageTypes, fields?: Record<string, unknown>): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    if (type) this.notify(type, fields);
    for (const frame of held) this.#write(frame);
    this.#drain();
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
    this.#nextId = this.#nextId === CALL_IDS - 1 ? 1 : this.#nextId + 1;
  }

  #write(frame: Uint8Array): boolean {
    if (this.#reason) return false;
    if (this.#held) {
      this.#held.push(frame);
      return false;
    }
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
    if (message.type === "CALL") {
      this.#called(message);
      return;
    }
    // Answers to what was given up here, and the boot hello, have nobody waiting: they are dropped.
    this.#handlers.get(message.id)?.onMessage(message);
  }

  #called(message: Extract<GuestMessage, { type: "CALL" }>): void {
    if (this.#handlers.has(message.id))
      throw new AgentError("AGENT_PROTOCOL", "The guest opened a call twice");
    if (this.#onCall) this.#onCall(message);
    else refuseCall(this, message.id);
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

function refuseCall(connection: Connection, id: number): void {
  const line = new TextEncoder().encode("error NO_HOST The host of this VM takes no calls\n");
  void connection.sendData(id, 0, line);
  connection.send("END", id, { s: 0 });
  connection.send("CANCEL", id, { s: 1 });
}
