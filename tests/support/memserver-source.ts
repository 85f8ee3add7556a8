import { FlurryError } from "../../errors/errors.ts";
import type { FetchOptions, PageSource } from "../../memserver/image/page-source.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { pagesOf } from "./memserver-pages.ts";

/** Pages that somebody has asked for, and that come when the test says so. */
export interface ScriptedFetch {
  page: number;
  count: number;
  urgent: boolean;
  /** They are there. */
  arrive(): void;
  /** It says that they are there, and they are not. */
  pretend(): void;
  fail(error: Error): void;
}

export interface ScriptedSourceOptions {
  pages: number;
  /** Pages of zeros. */
  zeros?: Iterable<number> | undefined;
  /** Pages that are not on this host. */
  far?: Iterable<number> | undefined;
}

/** An image whose pages are `pageOf`'s, or zeros, and come from elsewhere when a test says so. */
export class ScriptedSource implements PageSource {
  readonly pages: number;
  /** All that has been asked for from elsewhere, answered or not. */
  readonly fetches: ScriptedFetch[] = [];
  readonly #zeros: ReadonlySet<number>;
  readonly #far: Set<number>;
  readonly #content: Buffer;
  readonly #waiting = new Set<ScriptedFetch>();
  #asked = Promise.withResolvers<void>();

  constructor({ pages, zeros = [], far = [] }: ScriptedSourceOptions) {
    this.pages = pages;
    this.#zeros = new Set(zeros);
    this.#far = new Set(far);
    this.#content = pagesOf(0, pages);
    for (const page of this.#zeros) this.#content.fill(0, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }

  get complete(): boolean {
    return this.#far.size === 0;
  }

  /** Fetches that are not answered yet. */
  get waiting(): ScriptedFetch[] {
    return [...this.#waiting];
  }

  /** Numbers of the pages that are no zero pages. */
  get dataPages(): number[] {
    return Array.from({ length: this.pages }, (_, page) => page).filter((page) => !this.isZero(page));
  }

  /** What a page holds. */
  content(page: number): Buffer {
    return this.#content.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }

  /** Waits until so many fetches are not answered yet. */
  async untilWaiting(count: number): Promise<void> {
    while (this.#waiting.size < count) await this.#asked.promise;
  }

  isZero(page: number): boolean {
    return this.#zeros.has(page);
  }

  read(page: number, count: number, target: Buffer, at: number): boolean {
    for (let next = page; next < page + count; next++) if (this.#far.has(next)) return false;
    this.#content.copy(target, at, page * PAGE_BYTES, (page + count) * PAGE_BYTES);
    return true;
  }

  async fetch(page: number, count: number, { urgent = false, signal }: FetchOptions = {}): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const settle = (how: () => void) => () => {
      if (this.#waiting.delete(fetch)) how();
    };
    const fetch: ScriptedFetch = {
      page,
      count,
      urgent,
      arrive: settle(() => {
        for (let next = page; next < page + count; next++) this.#far.delete(next);
        resolve();
      }),
      pretend: settle(resolve),
      fail: (error) => settle(() => reject(error))(),
    };
    signal?.addEventListener("abort", () => fetch.fail(new FlurryError("ABORTED", "Aborted by the caller")));
    this.fetches.push(fetch);
    this.#waiting.add(fetch);
    this.#asked.resolve();
    this.#asked = Promise.withResolvers();
    await promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const fetch of this.waiting) fetch.fail(new FlurryError("ABORTED", "The source is gone"));
  }
}
