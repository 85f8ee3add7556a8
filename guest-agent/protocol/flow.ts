import { Buffer } from "node:buffer";
import { limits, MARKER } from "./constants.ts";
import { AgentError } from "./errors.ts";

/** Chunks up to this size are joined while they wait: a guest that sends single bytes costs no more. */
const JOIN_BELOW = 4096;

export interface InboundHooks {
  /** Gives the guest the right to send so many bytes more. */
  credit(bytes: number): void;
  /** The reader lost interest. */
  cancel(): void;
}

/**
 * One stream from the guest. It holds at most one window of bytes; credit goes back as the reader
 * takes them, in steps of a quarter window, so that a slow reader slows the guest's program down.
 */
export class InboundStream {
  readonly readable: ReadableStream<Uint8Array>;
  readonly #hooks: InboundHooks;
  #queue: Uint8Array[] = [];
  #credit: number = limits.WINDOW_TO_HOST;
  #owed = 0;
  #end: { error: Error | undefined } | undefined;
  #wake: (() => void) | undefined;

  constructor(hooks: InboundHooks) {
    this.#hooks = hooks;
    const source: UnderlyingDefaultSource<Uint8Array> = {
      pull: (controller) => this.#pull(controller),
      cancel: () => this.#cancel(),
    };
    // High-water mark 0: nothing counts as read before somebody reads it.
    this.readable = new ReadableStream(source, { highWaterMark: 0 });
  }

  /** True once the guest has closed the stream, or it failed. */
  get ended(): boolean {
    return this.#end !== undefined;
  }

  /**
   * Takes bytes from the guest; copies them.
   *
   * @throws AgentError AGENT_PROTOCOL if the guest had no credit for them
   */
  push(bytes: Uint8Array): void {
    if (bytes.length > this.#credit) {
      const excess = `${bytes.length} bytes with a credit of ${this.#credit}`;
      throw new AgentError("AGENT_PROTOCOL", `The guest sent ${excess}`);
    }
    if (this.ended) return;
    this.#credit -= bytes.length;
    const last = this.#queue.at(-1);
    if (last && last.length + bytes.length <= JOIN_BELOW) {
      const joined = new Uint8Array(last.length + bytes.length);
      joined.set(last);
      joined.set(bytes, last.length);
      this.#queue[this.#queue.length - 1] = joined;
    } else {
      // A copy: the payload may be a small part of a large read, which would live on with it.
      this.#queue.push(new Uint8Array(bytes));
    }
    this.#notify();
  }

  /** The guest closed the stream: what waits is still read. With an error, that comes after it. */
  end(error?: Error): void {
    this.#end ??= { error };
    this.#notify();
  }

  async #pull(controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    while (this.#queue.length === 0 && !this.#end) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const chunk = this.#queue.shift();
    if (chunk) {
      controller.enqueue(chunk);
      this.#consumed(chunk.length);
    } else if (this.#end?.error) {
      controller.error(this.#end.error);
    } else {
      controller.close();
    }
  }

  #consumed(bytes: number): void {
    this.#owed += bytes;
    if (this.ended || this.#owed < limits.WINDOW_TO_HOST / 4) return;
    this.#credit += this.#owed;
    this.#hooks.credit(this.#owed);
    this.#owed = 0;
  }

  #cancel(): void {
    this.#queue = [];
    const wasOpen = !this.ended;
    this.end();
    if (wasOpen) this.#hooks.cancel();
  }

  #notify(): void {
    this.#wake?.();
    this.#wake = undefined;
  }
}

export interface OutboundHooks {
  /** Sends at most CHUNK_MAX bytes; resolves when the socket takes more. */
  data(chunk: Uint8Array): Promise<void>;
  end(): void;
}

/** One stream to the guest: it waits for the guest's credit, and for the socket. */
export class OutboundStream {
  readonly #hooks: OutboundHooks;
  #credit: number = limits.WINDOW_TO_GUEST;
  #failure: Error | undefined;
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(hooks: OutboundHooks) {
    this.#hooks = hooks;
  }

  /** Sends all of `bytes`; throws what `fail` was given. One call at a time. */
  async write(bytes: Uint8Array): Promise<void> {
    let at = 0;
    for (;;) {
      if (this.#failure) throw this.#failure;
      if (at >= bytes.length) return;
      if (this.#credit === 0) {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        continue;
      }
      const size = Math.min(bytes.length - at, this.#credit, limits.CHUNK_MAX);
      const chunk = withoutMarker(bytes.subarray(at, at + size));
      this.#credit -= chunk.length;
      at += chunk.length;
      await this.#hooks.data(chunk);
    }
  }

  /** Tells the guest that nothing more comes. */
  end(): void {
    if (this.#ended || this.#failure) return;
    this.#ended = true;
    this.#hooks.end();
  }

  /** @throws AgentError AGENT_PROTOCOL if the guest gives more credit than one window */
  addCredit(bytes: number): void {
    this.#credit += bytes;
    if (this.#credit > limits.WINDOW_TO_GUEST) {
      throw new AgentError(
        "AGENT_PROTOCOL",
        `The guest gave a credit of ${this.#credit} bytes, more than one window`,
      );
    }
    this.#notify();
  }

  /** Makes this and every later write throw. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#notify();
  }

  #notify(): void {
    this.#wake?.();
    this.#wake = undefined;
  }
}

/**
 * As much of `chunk` as may go into one frame: it ends inside the first marker, whose rest goes into
 * the next frame. So a marker in the stream is always the start of a session, never a file's content.
 */
function withoutMarker(chunk: Uint8Array): Uint8Array {
  const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  const at = bytes.indexOf(MARKER);
  const cut = at < 0 ? bytes.length : at + MARKER.length / 2;
  // The chunk stands behind its length, whose last byte could be the marker's first one.
  const completed = cut % 256 === MARKER[0] && bytes.indexOf(MARKER.subarray(1)) === 0;
  return chunk.subarray(0, completed ? cut - 1 : cut);
}
