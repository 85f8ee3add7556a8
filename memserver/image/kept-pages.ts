import { PAGE_BYTES } from "../stream/format.ts";
import { PageSet } from "./page-set.ts";
import type { PageTable } from "./page-table.ts";
import type { SparseImage } from "./sparse-image.ts";

export interface KeptPagesOptions {
  table: PageTable;
  /** Where pages are kept; without one, in memory only. */
  local: SparseImage | undefined;
  /** Most bytes of pages kept in memory, where there is no local image or it takes no more. @default 16 MiB */
  memoryBytes?: number | undefined;
  /** All pages but zero ones are in the local image. */
  onComplete?: (() => void) | undefined;
  /** The local image takes no more. */
  onDegraded?: ((error: unknown) => void) | undefined;
}

/**
 * The pages of an image that are on this host. They are kept in a local image; from the first time on
 * that it cannot be written, further ones are kept in memory: those that are wanted, and of the others
 * the ones that were used last.
 *
 * What the local image has from before is checked when it is first looked at, and counts as missing if it
 * is wrong: after a loss of power there may be zeros.
 */
export class KeptPages {
  readonly #table: PageTable;
  readonly #local: SparseImage | undefined;
  readonly #options: KeptPagesOptions;
  readonly #most: number;
  /** Pages of the local image that were checked. */
  readonly #here: PageSet;
  /** Pages of the local image that were not. */
  readonly #unchecked: PageSet;
  /** In the order of use. */
  readonly #memory = new Map<number, Buffer>();
  /** How many want a page. */
  readonly #wanted = new Map<number, number>();
  #missing = 0;
  #degraded: boolean;

  constructor(options: KeptPagesOptions) {
    const { table, local, memoryBytes = 16 * 1024 * 1024 } = options;
    this.#table = table;
    this.#local = local;
    this.#options = options;
    this.#most = Math.max(1, Math.floor(memoryBytes / PAGE_BYTES));
    this.#degraded = local === undefined;
    this.#here = new PageSet(table.pages);
    this.#unchecked = new PageSet(table.pages);
    for (let page = 0; page < table.pages; page++) {
      if (table.isZero(page)) continue;
      this.#missing += 1;
      if (local?.has(page)) this.#unchecked.add(page);
    }
    if (this.complete) this.#tell(options.onComplete);
  }

  /** Whether all pages but zero ones are in the local image, and were checked. */
  get complete(): boolean {
    return this.#missing === 0;
  }

  /** Whether looking at a page may take time, since it may have to be checked. */
  get checking(): boolean {
    return this.#unchecked.size > 0;
  }

  /** Whether pages go to memory, as there is no local image that takes them. */
  get degraded(): boolean {
    return this.#degraded;
  }

  /** Most pages that can be kept in memory. */
  get most(): number {
    return this.#most;
  }

  /** Zero pages count as kept. */
  has(page: number): boolean {
    return this.#table.isZero(page) || this.#hasLocal(page) || this.#memory.has(page);
  }

  #hasLocal(page: number): boolean {
    if (this.#here.has(page)) return true;
    if (!this.#unchecked.has(page)) return false;
    this.#unchecked.delete(page);
    if (!this.#isRight(page)) return false;
    this.#arrived(page);
    return true;
  }

  #isRight(page: number): boolean {
    const data = Buffer.allocUnsafe(PAGE_BYTES);
    try {
      this.#local!.read(page, 1, data, 0);
    } catch {
      // What cannot be read can be brought again.
      return false;
    }
    return this.#table.matches(page, data);
  }

  #arrived(page: number): void {
    if (this.#here.has(page)) return;
    this.#here.add(page);
    this.#missing -= 1;
    if (this.complete) this.#tell(this.#options.onComplete);
  }

  /** As `PageSource.read`. */
  read(page: number, count: number, target: Buffer, at: number): boolean {
    const end = page + count;
    for (let next = page; next < end; ) {
      const where = at + (next - page) * PAGE_BYTES;
      const run = this.#localRun(next, end);
      if (run > 0) this.#local!.read(next, run, target, where);
      else if (this.#table.isZero(next)) target.fill(0, where, where + PAGE_BYTES);
      else if (!this.#readMemory(next, target, where)) return false;
      next += Math.max(run, 1);
    }
    return true;
  }

  /** How many pages there are from this one on that are in the local image. */
  #localRun(first: number, end: number): number {
    let next = first;
    while (next < end && this.#hasLocal(next)) next += 1;
    return next - first;
  }

  #readMemory(page: number, target: Buffer, at: number): boolean {
    const data = this.#memory.get(page);
    if (!data) return false;
    this.#memory.delete(page);
    this.#memory.set(page, data);
    data.copy(target, at);
    return true;
  }

  /** Keeps adjacent pages, checked and none of them zero. */
  keep(page: number, data: Buffer): void {
    if (!this.#degraded) {
      try {
        this.#local!.write(page, data);
        for (let at = 0; at < data.length / PAGE_BYTES; at++) this.#arrived(page + at);
        return;
      } catch (error) {
        this.#degraded = true;
        this.#tell(() => this.#options.onDegraded?.(error));
      }
    }
    for (let at = 0; at < data.length; at += PAGE_BYTES) {
      // A copy, since it is part of a larger buffer.
      this.#memory.set(page + at / PAGE_BYTES, Buffer.from(data.subarray(at, at + PAGE_BYTES)));
    }
    this.#evict();
  }

  /** Has pages stay until they are not wanted any more. */
  want(pages: readonly number[]): void {
    for (const page of pages) this.#wanted.set(page, (this.#wanted.get(page) ?? 0) + 1);
  }

  unwant(pages: readonly number[]): void {
    for (const page of pages) {
      const count = this.#wanted.get(page) ?? 0;
      if (count > 1) this.#wanted.set(page, count - 1);
      else this.#wanted.delete(page);
    }
    this.#evict();
  }

  #evict(): void {
    if (this.#memory.size <= this.#most) return;
    for (const page of this.#memory.keys()) {
      if (!this.#wanted.has(page)) this.#memory.delete(page);
      if (this.#memory.size <= this.#most) return;
    }
  }

  /** Not from within, so that what it throws is not taken for a failure of the image. */
  #tell(callback: (() => void) | undefined): void {
    if (callback) queueMicrotask(callback);
  }
}
