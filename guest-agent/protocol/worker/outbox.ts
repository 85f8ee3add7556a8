import { setImmediate } from "node:timers";

/** Bytes that may wait before `room()` asks for patience. */
const HIGH = 131_072;
/** Frames are joined up to this size: one write for an answer of several frames, and for many answers. */
const BATCH = 65_536;

/**
 * Frames on their way out, in order. What is pushed during one turn of the event loop leaves in one
 * write.
 */
export class Outbox {
  readonly #write: (bytes: Uint8Array) => Promise<void> | undefined;
  #queue: Uint8Array[] = [];
  #bytes = 0;
  #flushing = false;
  #closed = false;
  #room: PromiseWithResolvers<void> | undefined;
  #empty: PromiseWithResolvers<void> | undefined;

  /** @param write - sends bytes; the promise, if there is one, settles when more may be sent */
  constructor(write: (bytes: Uint8Array) => Promise<void> | undefined) {
    this.#write = write;
  }

  push(frame: Uint8Array): void {
    if (this.#closed) return;
    this.#queue.push(frame);
    this.#bytes += frame.length;
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(() => this.#flush());
  }

  /** Bytes that wait here. */
  get waiting(): number {
    return this.#bytes;
  }

  /** Settles when there is room for more; undefined if there is. */
  room(): Promise<void> | undefined {
    if (this.#bytes < HIGH || this.#closed) return undefined;
    this.#room ??= Promise.withResolvers<void>();
    return this.#room.promise;
  }

  /** Settles when everything has been written, or dropped. */
  async empty(): Promise<void> {
    if (!this.#flushing || this.#closed) return;
    this.#empty ??= Promise.withResolvers<void>();
    await this.#empty.promise;
  }

  /** Drops what waits, and everything after it. */
  close(): void {
    this.#closed = true;
    this.#queue = [];
    this.#bytes = 0;
    this.#wake();
  }

  #flush(): void {
    while (this.#queue.length > 0) {
      const waits = this.#write(this.#take());
      if (this.#bytes < HIGH) this.#wakeRoom();
      if (waits === undefined) continue;
      waits.then(
        () => this.#flush(),
        () => this.close(), // whoever gave us `write` knows why
      );
      return;
    }
    this.#flushing = false;
    this.#wake();
  }

  #take(): Uint8Array {
    let size = this.#queue[0]!.length;
    let count = 1;
    while (count < this.#queue.length && size + this.#queue[count]!.length <= BATCH) {
      size += this.#queue[count]!.length;
      count++;
    }
    this.#bytes -= size;
    if (count === 1) return this.#queue.shift()!;
    const joined = new Uint8Array(size);
    let at = 0;
    for (const frame of this.#queue.splice(0, count)) {
      joined.set(frame, at);
      at += frame.length;
    }
    return joined;
  }

  #wake(): void {
    this.#wakeRoom();
    this.#empty?.resolve();
    this.#empty = undefined;
  }

  #wakeRoom(): void {
    this.#room?.resolve();
    this.#room = undefined;
  }
}
