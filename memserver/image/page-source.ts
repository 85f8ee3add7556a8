/** Where the pages of one memory image come from. */
export interface PageSource extends AsyncDisposable {
  /** Pages of the image, of `PAGE_BYTES` each. */
  readonly pages: number;
  /** Whether all pages are on this host. */
  readonly complete: boolean;
  /** Whether a page holds nothing but zeros; known without reading it. */
  isZero(page: number): boolean;
  /**
   * Copies adjacent pages, at once.
   *
   * @param at - where they go in `target`
   * @returns false when some of them are not on this host yet; what is in `target` then means nothing.
   * Zero pages are read as zeros, whether anybody has them or not
   * @throws FlurryError IMAGE_CORRUPT, or the system's error, when they cannot be read
   */
  read(page: number, count: number, target: Buffer, at: number): boolean;
  /**
   * Brings adjacent pages to this host, so that `read` has them. Done at once where they are.
   *
   * @throws FlurryError PAGES_UNAVAILABLE when nobody can give them; ABORTED
   */
  fetch(page: number, count: number, options?: FetchOptions): Promise<void>;
}

export interface FetchOptions {
  /** A guest waits for them: they go before what nobody waits for. @default false */
  urgent?: boolean | undefined;
  signal?: AbortSignal | undefined;
}
