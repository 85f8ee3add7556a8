import { closeSync, ftruncateSync, openSync, readSync, statSync, writeSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { readExactly } from "./flat-image.ts";

/**
 * Some pages of a memory image: a sparse file as large as the image, and a bitmap beside it (`PATH.map`,
 * bit n of byte n / 8, from the lowest, is page n) of the pages that it has. A page's bit is set after
 * its bytes are written, so that a process killed at any moment leaves no page that is there and wrong.
 */
export class SparseImage implements Disposable {
  readonly path: string;
  readonly pages: number;
  readonly #data: number;
  readonly #map: number;
  readonly #present: Uint8Array;
  #count = 0;

  private constructor(path: string, pages: number, data: number, map: number, present: Uint8Array) {
    this.path = path;
    this.pages = pages;
    this.#data = data;
    this.#map = map;
    this.#present = present;
    for (let page = 0; page < pages; page++) if (this.has(page)) this.#count += 1;
  }

  /**
   * Opens both files for reading and writing, and makes them where they are missing.
   *
   * @throws FlurryError IMAGE_CORRUPT when they are of an image of another size
   */
  static open(path: string, pages: number): SparseImage {
    const mapBytes = Math.ceil(pages / 8);
    const data = openSized(path, pages * PAGE_BYTES);
    try {
      const map = openSized(`${path}.map`, mapBytes);
      try {
        const present = new Uint8Array(mapBytes);
        readSync(map, present, 0, mapBytes, 0);
        return new SparseImage(path, pages, data, map, present);
      } catch (error) {
        closeSync(map);
        throw error;
      }
    } catch (error) {
      closeSync(data);
      throw error;
    }
  }

  /** How many pages there are. */
  get count(): number {
    return this.#count;
  }

  has(page: number): boolean {
    return (this.#present[page >> 3]! & (1 << (page & 7))) !== 0;
  }

  /** Copies adjacent pages, all of which must be there. */
  read(page: number, count: number, target: Buffer, at: number): void {
    readExactly(this.#data, this.path, page, count, target, at);
  }

  /**
   * Adds adjacent pages.
   *
   * @param data - whole pages
   * @throws the system's error, such as ENOSPC; then none of them counts as there
   */
  write(page: number, data: Uint8Array): void {
    const count = data.length / PAGE_BYTES;
    for (let done = 0; done < data.length; ) {
      done += writeSync(this.#data, data, done, data.length - done, page * PAGE_BYTES + done);
    }
    const first = page >> 3;
    const last = (page + count - 1) >> 3;
    const bits = this.#present.slice(first, last + 1);
    for (let next = page; next < page + count; next++) bits[(next >> 3) - first]! |= 1 << (next & 7);
    writeSync(this.#map, bits, 0, bits.length, first);
    for (let next = page; next < page + count; next++) if (!this.has(next)) this.#count += 1;
    this.#present.set(bits, first);
  }

  [Symbol.dispose](): void {
    closeSync(this.#data);
    closeSync(this.#map);
  }
}

function openSized(path: string, bytes: number): number {
  const size = statSync(path, { throwIfNoEntry: false })?.size;
  const fd = openSync(path, size === undefined ? "wx+" : "r+", 0o640);
  if (size === undefined) {
    ftruncateSync(fd, bytes);
    return fd;
  }
  if (size === bytes) return fd;
  closeSync(fd);
  throw new FlurryError("IMAGE_CORRUPT", `"${path}" has ${size} bytes instead of ${bytes}`);
}
