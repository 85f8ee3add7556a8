import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import type { FetchOptions, PageSource } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";
import type { SparseImage } from "./sparse-image.ts";

/**
 * A memory image that is another one with some pages changed: deltas over a base. A page is that of the
 * latest delta that has it.
 */
export class LayeredImage implements PageSource {
  readonly pages: number;
  readonly #table: PageTable;
  /** The latest first. */
  readonly #deltas: readonly SparseImage[];
  readonly #base: PageSource;

  /**
   * @param table - of the image with all of its deltas
   * @param base - disposed of with this image, as the deltas are
   * @param deltas - the earliest first
   * @throws FlurryError IMAGE_CORRUPT when they have not all as many pages
   */
  constructor(table: PageTable, base: PageSource, deltas: readonly SparseImage[]) {
    const other = [base, ...deltas].find(({ pages }) => pages !== table.pages);
    if (other) {
      throw new FlurryError(
        "IMAGE_CORRUPT",
        `A layer has ${other.pages} pages, and the image ${table.pages}`,
      );
    }
    this.pages = table.pages;
    this.#table = table;
    this.#base = base;
    this.#deltas = deltas.toReversed();
  }

  isZero(page: number): boolean {
    return this.#table.isZero(page);
  }

  read(page: number, count: number, target: Buffer, at: number): boolean {
    return this.#runs(page, count).every(({ delta, first, length }) => {
      const where = at + (first - page) * PAGE_BYTES;
      if (!delta) return this.#base.read(first, length, target, where);
      delta.read(first, length, target, where);
      return true;
    });
  }

  async fetch(page: number, count: number, options?: FetchOptions): Promise<void> {
    const missing = this.#runs(page, count).filter(({ delta }) => !delta);
    await Promise.all(missing.map(({ first, length }) => this.#base.fetch(first, length, options)));
  }

  /** Cuts adjacent pages into those that have the same layer; without a delta it is the base. */
  #runs(page: number, count: number): Run[] {
    const runs: Run[] = [];
    for (let next = page; next < page + count; next++) {
      const delta = this.#deltas.find((one) => one.has(next));
      const last = runs.at(-1);
      if (last && last.delta === delta) last.length += 1;
      else runs.push({ delta, first: next, length: 1 });
    }
    return runs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const delta of this.#deltas) delta[Symbol.dispose]();
    await this.#base[Symbol.asyncDispose]();
  }
}

interface Run {
  delta: SparseImage | undefined;
  first: number;
  /** Pages. */
  length: number;
}
