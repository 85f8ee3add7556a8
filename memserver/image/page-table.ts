import { hash } from "node:crypto";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";

/** Bytes of a page's entry. */
export const ENTRY_BYTES = 16;
const ZERO_PAGE = Buffer.alloc(PAGE_BYTES);
const ENTRY_WORDS = ENTRY_BYTES / 4;

/**
 * The hashes of all pages of a memory image, in order: 16 bytes each, the first half of the page's
 * SHA-256, or zeros for a page of zeros. So it tells zero pages without reading them, and whether
 * bytes that came from elsewhere are the right ones. The hash of the table stands for the image.
 */
export class PageTable {
  /** The entries, `ENTRY_BYTES` for each page. */
  readonly bytes: Buffer;
  /** Pages of the image. */
  readonly pages: number;
  readonly #words: Uint32Array;

  /**
   * @param bytes - the entries; they are copied
   * @throws FlurryError IMAGE_CORRUPT when they are no whole number of entries
   */
  constructor(bytes: Uint8Array) {
    if (bytes.length % ENTRY_BYTES !== 0) {
      throw new FlurryError("IMAGE_CORRUPT", `Cannot read page table: ${bytes.length} bytes are no entries`);
    }
    // Of its own: a view at any offset could not be read as words.
    const copy = new Uint8Array(bytes);
    this.bytes = Buffer.from(copy.buffer);
    this.#words = new Uint32Array(copy.buffer);
    this.pages = bytes.length / ENTRY_BYTES;
  }

  /** Whether a page holds nothing but zeros. What is no page of the image does not. */
  isZero(page: number): boolean {
    if (!(page >= 0 && page < this.pages)) return false;
    const at = page * ENTRY_WORDS;
    const words = this.#words;
    return (words[at]! | words[at + 1]! | words[at + 2]! | words[at + 3]!) === 0;
  }

  /** Whether these bytes are the page, all of it. */
  matches(page: number, data: Uint8Array): boolean {
    // What is shorter has an entry too, that of the last page of an odd size.
    if (data.length !== PAGE_BYTES) return false;
    const at = page * ENTRY_BYTES;
    return pageEntry(data).equals(this.bytes.subarray(at, at + ENTRY_BYTES));
  }

  /** SHA-256 of the table, in hex: the hash of the memory image. */
  get root(): string {
    return hash("sha256", this.bytes, "hex");
  }
}

/**
 * The entry of a page in the table.
 *
 * @param data - the page; what it lacks of `PAGE_BYTES` counts as zeros
 */
export function pageEntry(data: Uint8Array): Buffer {
  if (isZeroPage(data)) return Buffer.alloc(ENTRY_BYTES);
  const whole = data.length === PAGE_BYTES ? data : Buffer.concat([data], PAGE_BYTES);
  return hash("sha256", whole, "buffer").subarray(0, ENTRY_BYTES);
}

/** Whether there is no other byte than 0 in what is at most a page. */
export function isZeroPage(data: Uint8Array): boolean {
  return ZERO_PAGE.compare(data, 0, data.length, 0, data.length) === 0;
}
