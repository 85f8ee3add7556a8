import { closeSync, constants, fstatSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { readExactly } from "./flat-image.ts";

/**
 * Some pages of a memory image: a sparse file as large as the image, and a bitmap beside it (`PATH.map`,
 * bit n of byte n / 8, from the lowest, is page n) of the pages that it has. A page's bit is set after
 * its bytes are written, so that a process killed at any moment leaves no page that is there and wrong.
 * It has one writer at a time, and a page that is written again has the same bytes as before. What holds
 * for a killed process does not hold for a host that loses power: the bits may be on its disk without
 * the bytes.
 */
export class SparseImage implements Disposable {
  readonly path: string;
  readonly pages: number;
  readonly #data: number;
  readonly #map: number;
  readonly #present: Uint8Array;
  #count = 0;

  private constructor(path: string, pages: number, data: number, map: number) {
    this.path = path;
    this.pages = pages;
    this.#data = data;
    this.#map = map;
    this.#present = new Uint8Array(mapBytesOf(pages));
    const got = readSync(map, this.#present, 0, this.#present.length, 0);
    if (got !== this.#present.length) throw sizeError(`${path}.map`, got, this.#present.length);
    for (let page = 0; page < pages; page++) if (this.has(page)) this.#count += 1;
  }

  /**
   * Opens both files for reading and writing. Where one of them is missing or empty the image is made
   * anew, without pages: bytes without a map say nothing, and a map without bytes speaks of zeros.
   *
   * @throws FlurryError IMAGE_CORRUPT when they are of an image of another size
   */
  static open(path: string, pages: number): SparseImage {
    return withFiles(path, constants.O_RDWR | constants.O_CREAT, (data, map) => {
      if (pages > 0 && (fstatSync(data).size === 0 || fstatSync(map).size === 0)) make(data, map, pages);
      checkSizes(path, data, map, pages);
      return new SparseImage(path, pages, data, map);
    });
  }

  /**
   * Opens an image that was written before, for reading alone. So are deltas opened: one that lacks a
   * page would show that of an earlier layer.
   *
   * @param count - pages that it has
   * @throws FlurryError IMAGE_CORRUPT when a file is missing or of another size, or it has not so many pages
   */
  static openWritten(path: string, pages: number, count: number): SparseImage {
    return withFiles(path, constants.O_RDONLY, (data, map) => {
      checkSizes(path, data, map, pages);
      const image = new SparseImage(path, pages, data, map);
      if (image.count === count) return image;
      throw new FlurryError("IMAGE_CORRUPT", `"${path}" has ${image.count} pages instead of ${count}`);
    });
  }

  /** How many pages there are. */
  get count(): number {
    return this.#count;
  }

  has(page: number): boolean {
    return (this.#present[page >> 3]! & (1 << (page & 7))) !== 0;
  }

  /**
   * Copies adjacent pages.
   *
   * @throws RangeError when one of them is not there: its bytes would be zeros
   */
  read(page: number, count: number, target: Buffer, at: number): void {
    for (let next = page; next < page + count; next++) {
      if (!this.has(next))
        throw new RangeError(`Cannot read page ${next} of "${this.path}": it is not there`);
    }
    readExactly(this.#data, this.path, page, count, target, at);
  }

  /**
   * Adds adjacent pages.
   *
   * @param data - whole pages
   * @throws the system's error, such as ENOSPC; then none of them counts as there. RangeError when they
   * are no pages of the image
   */
  write(page: number, data: Uint8Array): void {
    const end = page + data.length / PAGE_BYTES;
    if (!(Number.isInteger(page) && Number.isInteger(end) && page >= 0 && end <= this.pages)) {
      throw new RangeError(
        `Cannot write ${data.length} bytes at page ${page} of "${this.path}": it has ${this.pages} pages`,
      );
    }
    if (data.length === 0) return;
    writeAll(this.#data, data, page * PAGE_BYTES);
    const first = page >> 3;
    const bits = this.#present.slice(first, ((end - 1) >> 3) + 1);
    for (let next = page; next < end; next++) bits[(next >> 3) - first]! |= 1 << (next & 7);
    writeAll(this.#map, bits, first);
    for (let next = page; next < end; next++) if (!this.has(next)) this.#count += 1;
    this.#present.set(bits, first);
  }

  [Symbol.dispose](): void {
    closeSync(this.#data);
    closeSync(this.#map);
  }
}

function mapBytesOf(pages: number): number {
  return Math.ceil(pages / 8);
}

/** Opens both files, and closes them where nothing came of it. */
function withFiles(
  path: string,
  flags: number,
  use: (data: number, map: number) => SparseImage,
): SparseImage {
  const opened: number[] = [];
  try {
    const [data, map] = [path, `${path}.map`].map((file) => {
      const fd = openSync(file, flags, 0o640);
      opened.push(fd);
      return fd;
    });
    return use(data!, map!);
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    if (flags === constants.O_RDONLY && codeOf(error) === "ENOENT") {
      throw new FlurryError("IMAGE_CORRUPT", `"${path}" or its map is missing`, { cause: error });
    }
    throw error;
  }
}

/**
 * Makes both files new. The data has no size until the map is whole, so that what is cut off in between
 * is made again.
 */
function make(data: number, map: number, pages: number): void {
  ftruncateSync(data, 0);
  ftruncateSync(map, 0);
  // Written and no hole: a bit must find its room on a full disk where the page's bytes did.
  writeAll(map, new Uint8Array(mapBytesOf(pages)), 0);
  ftruncateSync(data, pages * PAGE_BYTES);
}

function checkSizes(path: string, data: number, map: number, pages: number): void {
  for (const [file, fd, wanted] of [
    [path, data, pages * PAGE_BYTES],
    [`${path}.map`, map, mapBytesOf(pages)],
  ] as const) {
    const { size } = fstatSync(fd);
    if (size !== wanted) throw sizeError(file, size, wanted);
  }
}

function sizeError(file: string, size: number, wanted: number): FlurryError {
  return new FlurryError("IMAGE_CORRUPT", `"${file}" has ${size} bytes instead of ${wanted}`);
}

/** The system writes less than it is asked to where room ends, and says why at the next attempt. */
function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(fd, bytes, done, bytes.length - done, position + done);
  }
}
