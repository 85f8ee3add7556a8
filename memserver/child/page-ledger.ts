import type { PageSource } from "../image/page-source.ts";
import { MAX_RUN_PAGES } from "./page-channel.ts";

const OPEN = 0;
const AWAITED = 1;
const SENT = 2;

/** Adjacent pages. */
export interface PageRun {
  page: number;
  count: number;
}

/** What a child has got of its memory: a page must be sent once, since QEMU takes a second one for an error. */
export class PageLedger {
  readonly pages: number;
  readonly #states: Uint8Array;
  readonly #source: Pick<PageSource, "pages" | "isZero">;
  #awaited = 0;

  constructor(source: Pick<PageSource, "pages" | "isZero">) {
    this.pages = source.pages;
    this.#source = source;
    this.#states = new Uint8Array(source.pages);
  }

  /** Pages that the guest waits for while they come from elsewhere. */
  get awaited(): number {
    return this.#awaited;
  }

  /** Whether a page is neither sent nor awaited. */
  isOpen(page: number): boolean {
    return this.#states[page] === OPEN;
  }

  sent(page: number, count = 1): void {
    for (let next = page; next < page + count; next++) {
      if (this.#states[next] === AWAITED) this.#awaited -= 1;
      this.#states[next] = SENT;
    }
  }

  await(page: number): void {
    this.#states[page] = AWAITED;
    this.#awaited += 1;
  }

  /**
   * Takes over what the child says that it has.
   *
   * @param bits - bit n, from the lowest of the first byte on: page n
   */
  received(bits: Uint8Array): void {
    for (let page = 0; page < this.pages; page++) if (hasBit(bits, page)) this.sent(page);
  }

  /** The next pages from `from` on that are open and no zero pages; undefined when there are none. */
  nextOpen(from: number): PageRun | undefined {
    let page = from;
    while (page < this.pages && !this.#wanted(page)) page += 1;
    if (page === this.pages) return undefined;
    let end = page + 1;
    while (end < this.pages && end - page < MAX_RUN_PAGES && this.#wanted(end)) end += 1;
    return { page, count: end - page };
  }

  #wanted(page: number): boolean {
    return this.#states[page] === OPEN && !this.#source.isZero(page);
  }
}

/** Puts adjacent pages of a list together, in its order. */
export function runsOf(pages: Iterable<number>): PageRun[] {
  const runs: PageRun[] = [];
  for (const page of pages) {
    const last = runs.at(-1);
    if (last && last.page + last.count === page && last.count < MAX_RUN_PAGES) last.count += 1;
    else runs.push({ page, count: 1 });
  }
  return runs;
}

function hasBit(bits: Uint8Array, page: number): boolean {
  return (bits[page >> 3]! & (1 << (page & 7))) !== 0;
}
