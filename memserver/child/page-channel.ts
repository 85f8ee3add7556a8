import type { Socket } from "node:net";
import type { PageSource } from "../image/page-source.ts";
import { flag, PAGE_BYTES } from "../stream/format.ts";

/** Bytes of a record before its page, without the block's name. */
const HEAD_BYTES = 8;
const ZERO_BYTES = HEAD_BYTES + 1;
const RECORD_BYTES = HEAD_BYTES + PAGE_BYTES;
/** Most pages that are read at once. */
export const MAX_RUN_PAGES = 32;
/** A batch is written when it has so many bytes: large enough to cost little a page, small enough to let others by. */
const BATCH_BYTES = 128 * 1024;
const MOST_BATCH_BYTES = BATCH_BYTES + MAX_RUN_PAGES * RECORD_BYTES + 256;

// Where runs are read to before heads are put between their pages; no two channels use it at once.
const NO_BATCH = Buffer.alloc(0);
const scratch = Buffer.allocUnsafeSlow(MAX_RUN_PAGES * PAGE_BYTES);

/**
 * One connection to a child, as a way for page records. Each of the two that a child may have has its
 * own notion of the current block, which CONTINUE refers to.
 */
export class PageChannel {
  readonly #socket: Socket;
  readonly #source: PageSource;
  /** Name of the block whose pages the source has. */
  readonly #block: string;
  #current: string | undefined;
  #batch = NO_BATCH;
  #batched = 0;
  #full = false;
  #closed = false;
  #drained: PromiseWithResolvers<void> | undefined;

  constructor(socket: Socket, source: PageSource, block: string) {
    this.#socket = socket;
    this.#source = source;
    this.#block = block;
    socket.on("drain", () => this.#drain());
    // Whoever waits goes on, and finds that there is nobody to send to.
    socket.on("close", () => {
      this.#closed = true;
      this.#drain();
    });
  }

  /** Whether the child reads slower than this writes. What is sent all the same is kept in memory. */
  get full(): boolean {
    return this.#full;
  }

  /** Resolves when it is no longer full, or closed. */
  get drained(): Promise<void> {
    if (!this.#full) return Promise.resolve();
    this.#drained ??= Promise.withResolvers<void>();
    return this.#drained.promise;
  }

  /** Sends what is no page record, or one that is complete. */
  send(bytes: Uint8Array): void {
    // What is in the batch says CONTINUE of what was sent before it.
    this.flush();
    this.#write(bytes);
  }

  /**
   * Sends one page at once, that is no zero page.
   *
   * @returns false, and nothing is sent, when it is not on this host yet
   */
  sendPage(page: number): boolean {
    const name = this.#nameBytes(this.#block);
    const out = Buffer.allocUnsafe(name + RECORD_BYTES);
    if (!this.#source.read(page, 1, out, HEAD_BYTES + name)) return false;
    this.#head(out, 0, this.#block, page * PAGE_BYTES, flag.page);
    this.send(out);
    return true;
  }

  /** Sends a page of zeros of any block at once. */
  sendZero(block: string, offset: number): void {
    const out = Buffer.alloc(ZERO_BYTES + this.#nameBytes(block));
    this.#head(out, 0, block, offset, flag.zero);
    this.send(out);
  }

  /**
   * Adds adjacent pages to the batch, none of them a zero page.
   *
   * @param count - `MAX_RUN_PAGES` at most
   * @returns false, and nothing is added, when some are not on this host yet
   */
  addPages(page: number, count: number): boolean {
    if (!this.#source.read(page, count, scratch, 0)) return false;
    for (let next = 0; next < count; next++) {
      this.#addHead((page + next) * PAGE_BYTES, flag.page);
      scratch.copy(this.#batch, this.#batched, next * PAGE_BYTES, (next + 1) * PAGE_BYTES);
      this.#batched += PAGE_BYTES;
    }
    if (this.#batched >= BATCH_BYTES) this.flush();
    return true;
  }

  /** Adds a page of zeros to the batch. */
  addZero(page: number): void {
    this.#addHead(page * PAGE_BYTES, flag.zero);
    this.#batch[this.#batched++] = 0;
    if (this.#batched >= BATCH_BYTES) this.flush();
  }

  /** Sends the batch. */
  flush(): void {
    if (this.#batched === 0) return;
    this.#write(this.#batch.subarray(0, this.#batched));
    // The socket may keep the old one for as long as it likes.
    this.#batch = NO_BATCH;
    this.#batched = 0;
  }

  #write(bytes: Uint8Array): void {
    // It would count as full, for good.
    if (this.#closed) return;
    if (!this.#socket.write(bytes)) this.#full = true;
  }

  #addHead(offset: number, what: number): void {
    if (this.#batch.length === 0) this.#batch = Buffer.allocUnsafeSlow(MOST_BATCH_BYTES);
    this.#batched = this.#head(this.#batch, this.#batched, this.#block, offset, what);
  }

  #nameBytes(block: string): number {
    return block === this.#current ? 0 : 1 + block.length;
  }

  /** Returns where the record goes on. */
  #head(out: Buffer, at: number, block: string, offset: number, what: number): number {
    const named = block !== this.#current;
    this.#current = block;
    out.writeUInt32BE(Math.floor(offset / 0x1_0000_0000), at);
    out.writeUInt32BE(((offset % 0x1_0000_0000) + what + (named ? 0 : flag.continue)) >>> 0, at + 4);
    if (!named) return at + HEAD_BYTES;
    out[at + HEAD_BYTES] = block.length;
    out.write(block, at + HEAD_BYTES + 1, "latin1");
    return at + HEAD_BYTES + 1 + block.length;
  }

  #drain(): void {
    this.#full = false;
    this.#drained?.resolve();
    this.#drained = undefined;
  }
}
