import { FlurryError } from "../../errors/errors.ts";

/** Most of an image that a working set may be: one of everything would push what nobody needs. */
const MOST_SHARE = 0.1;
const NUMBER_BYTES = 4;

/** The pages that a child has asked for, in order, as long as they are few. */
export class WorkingSetRecord {
  readonly #pages: number[] = [];
  readonly #most: number;

  /** @param imagePages - pages of the image */
  constructor(imagePages: number) {
    this.#most = Math.floor(imagePages * MOST_SHARE);
  }

  add(page: number): void {
    if (this.#pages.length < this.#most) this.#pages.push(page);
  }

  get pages(): Uint32Array {
    return Uint32Array.from(this.#pages);
  }
}

/** The file of a working set: page numbers of 32 bits, little endian, in the order in which they are needed. */
export function encodeWorkingSet(pages: Uint32Array): Buffer {
  const bytes = Buffer.alloc(pages.length * NUMBER_BYTES);
  for (const [at, page] of pages.entries()) bytes.writeUInt32LE(page, at * NUMBER_BYTES);
  return bytes;
}

/**
 * @param imagePages - pages of the image
 * @throws FlurryError IMAGE_CORRUPT when it names a page that the image has not, or one twice
 */
export function decodeWorkingSet(bytes: Uint8Array, imagePages: number): Uint32Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length % NUMBER_BYTES !== 0) throw corrupt(`${bytes.length} bytes are no page numbers`);
  const pages = new Uint32Array(bytes.length / NUMBER_BYTES);
  for (let at = 0; at < pages.length; at++) pages[at] = view.getUint32(at * NUMBER_BYTES, true);
  const beyond = pages.find((page) => page >= imagePages);
  if (beyond !== undefined) throw corrupt(`page ${beyond} is none of ${imagePages}`);
  if (new Set(pages).size !== pages.length) throw corrupt("a page is in it twice");
  return pages;
}

function corrupt(reason: string): FlurryError {
  return new FlurryError("IMAGE_CORRUPT", `Cannot read working set: ${reason}`);
}
