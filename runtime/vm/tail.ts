import type { Readable } from "node:stream";
import { stripVTControlCharacters } from "node:util";

/** Characters of a line that has not ended yet, for `onLine`. */
const LINE_LIMIT = 1024;

/** Keeps the last `limit` bytes of a stream, so that a guest that floods its console holds no memory. */
export class Tail {
  /** A ring: the next byte goes to `#written` modulo its length. */
  readonly #ring: Buffer;
  #written = 0;

  constructor(stream: Readable, limit: number, onLine?: (line: string) => void) {
    this.#ring = Buffer.alloc(limit);
    const lines = onLine && lineSplitter(onLine);
    stream.on("data", (chunk: Buffer) => {
      this.#push(chunk);
      lines?.(chunk);
    });
    // The end of the pipe is the end of the process, which has its own event.
    stream.on("error", (error) => this.#push(Buffer.from(`[${error.message}]`)));
  }

  text(): string {
    const next = this.#written % this.#ring.length;
    const parts =
      this.#written < this.#ring.length
        ? [this.#ring.subarray(0, next)]
        : [this.#ring.subarray(next), this.#ring.subarray(0, next)];
    return plainText(Buffer.concat(parts).toString("utf8")).trim();
  }

  // Chunks are copied: one byte of a pipe may keep a whole read buffer alive.
  #push(chunk: Buffer): void {
    let rest = chunk.subarray(-this.#ring.length);
    this.#written += chunk.length - rest.length;
    while (rest.length > 0) {
      const copied = rest.copy(this.#ring, this.#written % this.#ring.length);
      this.#written += copied;
      rest = rest.subarray(copied);
    }
  }
}

function lineSplitter(onLine: (line: string) => void): (chunk: Buffer) => void {
  const decoder = new TextDecoder();
  let partial = "";
  return (chunk) => {
    const lines = (partial + decoder.decode(chunk, { stream: true })).split(/\r?\n/);
    partial = (lines.pop() ?? "").slice(-LINE_LIMIT);
    for (const line of lines) onLine(plainText(line));
  };
}

/**
 * Text without control characters, but for tabs and newlines: what a guest or its firmware writes
 * ends in messages on somebody's terminal, which must not obey it.
 */
function plainText(text: string): string {
  return stripVTControlCharacters(text).replace(/(?![\n\t])\p{Cc}/gu, "");
}
