/**
 * Takes one unit off the bytes from `start` to `end`, of which there is at least one.
 *
 * @param at - offset of `start` in the stream
 * @returns how many bytes it has used, or how many a unit needs from `start` on as a negative number.
 * Then it has changed nothing, and needs no more than some 64 KiB.
 */
export type Step = (bytes: Buffer, start: number, end: number, at: number) => number;

/**
 * Cuts a stream that comes in chunks of any size into units. Units are read where they are; only one
 * that is spread over chunks is copied together, so that no more than that is ever held.
 */
export class Feed {
  readonly #step: Step;
  #carry = Buffer.allocUnsafe(8192);
  #held = 0;
  #offset = 0;
  #failure: { error: unknown } | undefined;

  constructor(step: Step) {
    this.#step = step;
  }

  /** Offset of the first byte that is no part of a unit yet. */
  get offset(): number {
    return this.#offset;
  }

  /** How many bytes there are of a unit that is not complete. */
  get held(): number {
    return this.#held;
  }

  /** Takes the next bytes. After an error every call fails with the same one. */
  push(chunk: Uint8Array): void {
    if (this.#failure) throw this.#failure.error;
    try {
      this.#run(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength));
    } catch (error) {
      this.#failure = { error };
      throw error;
    }
  }

  #run(bytes: Buffer): void {
    let start = this.#complete(bytes);
    while (start < bytes.length) {
      const used = this.#step(bytes, start, bytes.length, this.#offset);
      if (used < 0) {
        this.#hold(bytes, start, bytes.length, -used);
        return;
      }
      start += used;
      this.#offset += used;
    }
  }

  /** Completes what is held. Returns how many of the bytes that took. */
  #complete(bytes: Buffer): number {
    let taken = 0;
    while (this.#held > 0) {
      const used = this.#step(this.#carry, 0, this.#held, this.#offset);
      if (used >= 0) {
        this.#carry.copyWithin(0, used, this.#held);
        this.#held -= used;
        this.#offset += used;
        continue;
      }
      const end = Math.min(taken - used - this.#held, bytes.length);
      if (end === taken) return taken;
      this.#hold(bytes, taken, end, -used);
      taken = end;
    }
    return taken;
  }

  #hold(bytes: Buffer, start: number, end: number, needed: number): void {
    if (this.#carry.length < needed) {
      const larger = Buffer.allocUnsafe(needed);
      this.#carry.copy(larger, 0, 0, this.#held);
      this.#carry = larger;
    }
    bytes.copy(this.#carry, this.#held, start, end);
    this.#held += end - start;
  }
}

const LEAST_BYTES = 64 * 1024;

/** Bytes that grow as they come, whatever length was announced. */
export class Gathered {
  #buffer = Buffer.alloc(0);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** What there is so far; valid until the next call of `space`. */
  get bytes(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  /** Appends a part of a buffer. */
  add(bytes: Buffer, start: number, end: number): void {
    const at = this.space(end - start);
    bytes.copy(this.#buffer, at, start, end);
  }

  /** Makes the bytes longer. Returns where the new ones begin in `buffer`; they are not cleared. */
  space(length: number): number {
    const at = this.#length;
    this.#length += length;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#length, this.#buffer.length * 2, LEAST_BYTES));
      this.#buffer.copy(larger, 0, 0, at);
      this.#buffer = larger;
    }
    return at;
  }

  get buffer(): Buffer {
    return this.#buffer;
  }
}
