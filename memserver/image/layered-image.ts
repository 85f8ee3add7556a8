import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import type { FetchOptions, PageSource } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";
import type { SparseImage } from "./sparse-image.ts";

/**
 * A memory image that is another one with some pages changed: deltas over a base. A page is that of the
 * latest delta that has it, or zeros where the table says so.
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

  get complete(): boolean {
    return this.#base.complete;
  }

  isZero(page: number): boolean {
    return this.#table.isZero(page);
  }

  read(page: number, count: number, target: Buffer, at: number): boolean {
    return this.#runs(page, count).every(({ layer, first, length }) => {
      const where = at + (first - page) * PAGE_BYTES;
      if (layer === "base") return this.#base.read(first, length, target, where);
      if (layer === "zeros") target.fill(0, where, where + length * PAGE_BYTES);
      else layer.read(first, length, target, where);
      return true;
    });
  }

  async fetch(page: number, count: number, options?: FetchOptions): Promise<void> {
    const missing = this.#runs(page, count).filter(({ layer }) => layer === "base");
    await Promise.all(missing.map(({ first, length }) => this.#base.fetch(first, length, options)));
  }

  /** Cuts adjacent pages into those that have the same layer. */
  #runs(page: number, count: number): Run[] {
    const runs: Run[] = [];
    for (let next = page; next < page + count; next++) {
      const layer = this.#layerOf(next);
      const last = runs.at(-1);
      if (last && last.layer === layer) last.length += 1;
      else runs.push({ layer, first: next, length: 1 });
    }
    return runs;
  }

  #layerOf(page: number): Layer {
    // The table first: what has become zero need be in no delta, and may be something else in the base.
    if (this.#table.isZero(page)) return "zeros";
    return this.#deltas.find((delta) => delta.has(page)) ?? "base";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const delta of this.#deltas) delta[Symbol.dispose]();
    await this.#base[Symbol.asyncDispose]();
  }
}

type Layer = SparseImage | "base" | "zeros";

interface Run {
  layer: Layer;
  first: number;
  /** Pages. */
  length: number;
}
