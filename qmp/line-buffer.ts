import { Buffer } from "node:buffer";

const NEWLINE = 0x0a;
const FIRST_CAPACITY = 64 * 1024;

/**
 * Cuts a byte stream into lines. A line that lies within one chunk is decoded in place; only a line
 * that spans chunks is copied, into a buffer that doubles, so the work stays linear however small
 * the chunks are.
 */
export class LineBuffer {
  readonly #maxLineBytes: number;
  #chunks: Buffer[] = [];
  #offset = 0;
  #partial = Buffer.alloc(0);
  #partialLength = 0;

  constructor(maxLineBytes: number) {
    this.#maxLineBytes = maxLineBytes;
  }

  push(chunk: Uint8Array): void {
    if (chunk.byteLength === 0) return;
    this.#chunks.push(
      Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength),
    );
  }

  /**
   * The next whole line without its newline, or undefined until more arrives.
   *
   * @throws RangeError when a line is longer than the cap, ended or not.
   */
  next(): string | undefined {
    for (let chunk = this.#chunks[0]; chunk !== undefined; chunk = this.#chunks[0]) {
      const start = this.#offset;
      const newline = chunk.indexOf(NEWLINE, start);
      const end = newline === -1 ? chunk.length : newline;
      if (this.#partialLength + end - start > this.#maxLineBytes) {
        throw new RangeError(`Line is longer than ${this.#maxLineBytes} bytes`);
      }
      if (newline === -1) {
        this.#keep(chunk, start);
        this.#dropChunk();
        continue;
      }
      if (newline + 1 === chunk.length) this.#dropChunk();
      else this.#offset = newline + 1;
      return this.#partialLength === 0
        ? chunk.toString("utf8", start, newline)
        : this.#takePartial(chunk.subarray(start, newline));
    }
    return undefined;
  }

  #dropChunk(): void {
    this.#chunks.shift();
    this.#offset = 0;
  }

  #keep(chunk: Buffer, start: number): void {
    const needed = this.#partialLength + chunk.length - start;
    if (needed > this.#partial.length) {
      const grown = Buffer.alloc(Math.max(needed, this.#partial.length * 2, FIRST_CAPACITY));
      this.#partial.copy(grown, 0, 0, this.#partialLength);
      this.#partial = grown;
    }
    chunk.copy(this.#partial, this.#partialLength, start);
    this.#partialLength = needed;
  }

  #takePartial(rest: Buffer): string {
    this.#keep(rest, 0);
    const line = this.#partial.toString("utf8", 0, this.#partialLength);
    this.#partial = Buffer.alloc(0);
    this.#partialLength = 0;
    return line;
  }
}
