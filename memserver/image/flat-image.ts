import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import type { PageSource } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";

/** A memory image that is one file on this host: byte n of the file is byte n of the RAM block. */
export class FlatImage implements PageSource {
  readonly pages: number;
  readonly complete = true;
  readonly #path: string;
  readonly #table: PageTable;
  readonly #fd: number;

  /** @throws FlurryError IMAGE_CORRUPT when the file has not as many pages as the table */
  constructor(path: string, table: PageTable) {
    this.pages = table.pages;
    this.#path = path;
    this.#table = table;
    this.#fd = openSync(path, "r");
    const { size } = fstatSync(this.#fd);
    if (size === table.pages * PAGE_BYTES) return;
    closeSync(this.#fd);
    throw new FlurryError("IMAGE_CORRUPT", `"${path}" has ${size} bytes, and its table ${table.pages} pages`);
  }

  isZero(page: number): boolean {
    return this.#table.isZero(page);
  }

  read(page: number, count: number, target: Buffer, at: number): boolean {
    readExactly(this.#fd, this.#path, page, count, target, at);
    return true;
  }

  async fetch(): Promise<void> {
    // All of it is here.
  }

  async [Symbol.asyncDispose](): Promise<void> {
    closeSync(this.#fd);
  }
}

/**
 * Reads whole pages of a file.
 *
 * @throws FlurryError IMAGE_CORRUPT when the file ends before
 */
export function readExactly(
  fd: number,
  path: string,
  page: number,
  count: number,
  target: Buffer,
  at: number,
): void {
  const bytes = count * PAGE_BYTES;
  const got = readSync(fd, target, at, bytes, page * PAGE_BYTES);
  if (got === bytes) return;
  throw new FlurryError(
    "IMAGE_CORRUPT",
    `"${path}" ends after ${got} bytes of ${count} pages at page ${page}`,
  );
}
