import { FlurryError } from "../../errors/errors.ts";
import { decodeDescriptor, descriptorHash } from "../descriptor.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { peerFailed } from "./frames.ts";
import type { PeerAnswer } from "./messages.ts";
import { decompress } from "./zstd.ts";

/** An image that a peer has open for this connection. */
export interface PeerImage {
  /** The peer's, for this connection. */
  handle: number;
  /** Of the image, by its descriptor. */
  pages: number;
  /** Encoded; it has the hash that was asked for. */
  descriptor: Buffer;
  /** Of the page table, by the descriptor. */
  tableHash: string;
}

/** The answers to one READ, which must be of its pages, in order. */
export class GatheredPages {
  readonly #end: number;
  readonly #target: Buffer;
  #next: number;
  #length = 0;

  constructor(first: number, count: number) {
    this.#next = first;
    this.#end = first + count;
    this.#target = Buffer.allocUnsafe(count * PAGE_BYTES);
  }

  get bytes(): Buffer {
    return this.#target.subarray(0, this.#length);
  }

  /** Whether that was the last of them. */
  add({ first, count, encoding, bytes }: PeerAnswer & { kind: "pages" }): boolean {
    if (first !== this.#next || first + count > this.#end) {
      throw peerFailed(`Pages ${first} to ${first + count} instead of ${this.#next} to ${this.#end}`);
    }
    const most = count * PAGE_BYTES;
    const data = encoding === "zstd" ? decompress(bytes, most) : bytes;
    if (data.length > most || data.length % PAGE_BYTES !== 0) {
      throw peerFailed(`${data.length} bytes for at most ${count} pages`);
    }
    data.copy(this.#target, this.#length);
    this.#length += data.length;
    this.#next += count;
    return this.#next === this.#end;
  }
}

/**
 * The image of an OPENED.
 *
 * @param hash - that was asked for
 * @param bytes - the descriptor
 * @throws FlurryError PEER_FAILED when that has another hash, or does not fit
 */
export function readImage(hash: string, handle: number, pages: number, bytes: Buffer): PeerImage {
  if (descriptorHash(bytes) !== hash) throw peerFailed(`A descriptor that has not the hash ${hash}`);
  try {
    const { ram } = decodeDescriptor(bytes);
    if (ram.hash === undefined) throw peerFailed("A descriptor without its memory's hash");
    const expected = Math.ceil(ram.bytes / PAGE_BYTES);
    if (pages !== expected) throw peerFailed(`An image of ${pages} pages instead of ${expected}`);
    return { handle, pages, descriptor: bytes, tableHash: ram.hash };
  } catch (error) {
    throw error instanceof FlurryError && error.code === "PEER_FAILED"
      ? error
      : peerFailed(`A descriptor that cannot be read: ${hash}`, error);
  }
}

/** The error for an answer of the wrong kind. */
export function misplaced(answer: PeerAnswer, to: string): FlurryError {
  return peerFailed(`Answer "${answer.kind}" to "${to}"`);
}
