import type { Connection, Inheritance, MessageHandler } from "./connection.ts";
import { limits, streams } from "./constants.ts";
import { AgentError } from "./errors.ts";
import { InboundStream } from "./flow.ts";
import type { GuestMessage } from "./messages.ts";
import type { ExitStatus } from "./process.ts";
import { signalName } from "./signals.ts";

/**
 * A program that goes on in a fork of its guest. What it writes from the fork on is read here; its stdin ends
 * behind what the guest had got of it.
 */
export class InheritedProcess implements MessageHandler {
  readonly stdout: ReadableStream<Uint8Array>;
  readonly stderr: ReadableStream<Uint8Array>;
  /** Undefined for one that had ended before the fork. Rejects with AGENT_CLOSED. */
  readonly exited: Promise<ExitStatus> | undefined;
  readonly #streams: Record<number, InboundStream>;
  readonly #open: Set<number>;
  readonly #exit = Promise.withResolvers<ExitStatus>();
  readonly #connection: Connection;
  readonly #inheritance: Inheritance;
  #hasExited: boolean;

  constructor(connection: Connection, inheritance: Inheritance) {
    const { id, open, hasExited } = inheritance;
    this.#connection = connection;
    this.#inheritance = inheritance;
    this.#open = new Set(open);
    this.#hasExited = hasExited;
    const [out, err] = [streams.OUT, streams.ERR].map((stream) => this.#inbound(stream));
    this.#streams = { [streams.OUT]: out!, [streams.ERR]: err! };
    this.stdout = out!.readable;
    this.stderr = err!.readable;
    this.#exit.promise.catch(() => undefined);
    this.exited = hasExited ? undefined : this.#exit.promise;
    connection.openAs(id, this);
  }

  /** Has the guest go on with it; after `release()`. */
  begin(): void {
    const { id, open } = this.#inheritance;
    this.#connection.send("END", id, { s: streams.IN });
    for (const s of open) this.#connection.send("CREDIT", id, { s, n: limits.WINDOW_TO_HOST });
  }

  inheritance(): Inheritance | undefined {
    if (this.#isDone()) return undefined;
    return { ...this.#inheritance, open: [...this.#open], hasExited: this.#hasExited };
  }

  onMessage(message: GuestMessage): void {
    switch (message.type) {
      case "DATA":
        this.#streamOf(message.stream).push(message.data);
        return;
      case "END":
        this.#open.delete(message.stream);
        this.#streamOf(message.stream).end();
        break;
      case "EXIT":
        this.#hasExited = true;
        this.#exit.resolve(
          message.signal === undefined ? { code: message.code ?? 0 } : { signal: signalName(message.signal) },
        );
        break;
      case "CREDIT":
      case "CANCEL":
      case "OK":
        return;
      default:
        throw new AgentError("AGENT_PROTOCOL", `The guest sent ${message.type} for a program that went on`);
    }
    if (this.#isDone()) this.#connection.release(this.#inheritance.id);
  }

  onClose(error: AgentError): void {
    this.#hasExited = true;
    this.#exit.reject(error);
    for (const stream of this.#open) this.#streamOf(stream).end(error);
    this.#open.clear();
  }

  #isDone(): boolean {
    return this.#hasExited && this.#open.size === 0;
  }

  #inbound(s: number): InboundStream {
    const { id, open } = this.#inheritance;
    const stream = new InboundStream({
      credit: (n) => this.#connection.send("CREDIT", id, { s, n }),
      cancel: () => this.#connection.send("CANCEL", id, { s }),
    });
    if (!open.includes(s)) stream.end();
    return stream;
  }

  #streamOf(stream: number): InboundStream {
    const found = this.#streams[stream];
    if (found) return found;
    throw new AgentError("AGENT_PROTOCOL", "The guest wrote to a program's stdin");
  }
}
