import { Buffer } from "node:buffer";
import type { Connection, MessageHandler } from "./connection.ts";
import { limits, streams } from "./constants.ts";
import { AgentError } from "./errors.ts";
import { OutboundStream } from "./flow.ts";
import type { GuestMessage } from "./messages.ts";

/**
 * A conversation that a program of the guest has begun: lines and bytes in, answers out. CALLS.md says what they
 * are. Nothing is read ahead of need but one window.
 */
export class GuestCall implements MessageHandler {
  readonly id: number;
  /** Of the process that has opened it, as the kernel said then. */
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  readonly #connection: Connection;
  readonly #out: OutboundStream;
  #unread: Buffer = Buffer.alloc(0);
  #credit = 0;
  #ended = false;
  #closed: AgentError | undefined;
  #isOver = false;
  #wake: (() => void) | undefined;

  constructor(connection: Connection, { id, pid, uid, gid }: Extract<GuestMessage, { type: "CALL" }>) {
    this.#connection = connection;
    this.id = id;
    this.pid = pid;
    this.uid = uid;
    this.gid = gid;
    this.#out = new OutboundStream({
      data: (chunk) => connection.sendData(id, streams.IN, chunk),
      end: () => connection.send("END", id, { s: streams.IN }),
    });
    connection.openAs(id, this);
  }

  /** One that is new has its credit; one that goes on in a fork is given it. */
  resume(): void {
    this.#connection.send("CREDIT", this.id, { s: streams.OUT, n: limits.WINDOW_TO_HOST });
  }

  /** What has come and was not read. */
  get unread(): Uint8Array {
    return this.#unread;
  }

  /**
   * The next line without its end; undefined when the program has ended the conversation.
   *
   * @throws RangeError when it has more than `most` bytes; AgentError AGENT_CLOSED
   */
  async line(most: number): Promise<string | undefined> {
    for (;;) {
      const end = this.#unread.indexOf(10);
      if (end >= most || (end < 0 && this.#unread.length >= most)) {
        throw new RangeError(`A line of a call has more than ${most} bytes`);
      }
      if (end >= 0) return this.#take(end + 1).toString("latin1", 0, end);
      if (!(await this.#more())) return undefined;
    }
  }

  /** So many bytes; undefined when the program has ended the conversation before. @throws AgentError AGENT_CLOSED */
  async bytes(count: number): Promise<Uint8Array | undefined> {
    const parts: Buffer[] = [];
    for (let missing = count; missing > 0; ) {
      const part = this.#take(Math.min(missing, this.#unread.length));
      parts.push(part);
      missing -= part.length;
      if (missing > 0 && !(await this.#more())) return undefined;
    }
    return Buffer.concat(parts);
  }

  /** Sends an answer. @throws AgentError AGENT_CLOSED, or AGENT_REFUSED when the program reads no more */
  async write(answer: string | Uint8Array): Promise<void> {
    await this.#out.write(typeof answer === "string" ? Buffer.from(answer) : answer);
  }

  /** Ends the conversation. */
  end(): void {
    if (this.#isOver || this.#closed) return;
    this.#isOver = true;
    this.#out.end();
    if (this.#ended) this.#connection.release(this.id);
    else this.#connection.send("CANCEL", this.id, { s: streams.OUT });
  }

  onMessage(message: GuestMessage): void {
    switch (message.type) {
      case "DATA":
        this.#push(message.data);
        return;
      case "END":
        this.#ended = true;
        if (this.#isOver) this.#connection.release(this.id);
        this.#notify();
        return;
      case "CREDIT":
        this.#out.addCredit(message.bytes);
        return;
      case "CANCEL":
        this.#out.fail(new AgentError("AGENT_REFUSED", "The program reads no answers", { errno: "EPIPE" }));
        return;
      case "ERROR":
        this.onClose(new AgentError("AGENT_REFUSED", message.message, { remote: message.code }));
        this.#connection.release(this.id);
        return;
      default:
        throw new AgentError("AGENT_PROTOCOL", `The guest sent ${message.type} in a call`);
    }
  }

  onClose(error: AgentError): void {
    this.#closed = error;
    this.#out.fail(error);
    this.#notify();
  }

  #push(data: Uint8Array): void {
    if (this.#unread.length + data.length > limits.WINDOW_TO_HOST) {
      throw new AgentError("AGENT_PROTOCOL", "The guest sent more in a call than it had credit for");
    }
    this.#unread = Buffer.concat([this.#unread, data]);
    this.#notify();
  }

  #take(count: number): Buffer {
    const taken = this.#unread.subarray(0, count);
    this.#unread = this.#unread.subarray(count);
    this.#credit += count;
    if (this.#credit >= limits.WINDOW_TO_HOST / 4 && !this.#ended && !this.#closed) {
      this.#connection.send("CREDIT", this.id, { s: streams.OUT, n: this.#credit });
      this.#credit = 0;
    }
    return taken;
  }

  /** Waits until there is more; false at the end. */
  async #more(): Promise<boolean> {
    const had = this.#unread.length;
    while (this.#unread.length === had) {
      if (this.#closed) throw this.#closed;
      if (this.#ended || this.#isOver) return false;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return true;
  }

  #notify(): void {
    this.#wake?.();
    this.#wake = undefined;
  }
}
