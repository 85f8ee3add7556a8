import { setImmediate as nextTurn } from "node:timers/promises";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { orAborted, sleep, throwIfAborted } from "../waiting.ts";
import { BulkSlots } from "./bulk-slots.ts";
import { Flights, MOST_PAGES } from "./flights.ts";
import { type Holder, type HolderStats, Holders } from "./holders.ts";
import { KeptPages, type KeptPagesOptions } from "./kept-pages.ts";
import type { FetchOptions, PageSource } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";
import type { SparseImage } from "./sparse-image.ts";

/** A paced prefetch asks for no more at once than it may have in this part of a second. */
const PACED_PART = 1 / 16;
/** Pages that are looked over at a stretch. */
const SCANNED_PAGES = 16_384;

export interface RemoteImageOptions extends KeptPagesOptions {
  /** For messages. */
  name: string;
  /** Authenticated already: whatever matches it is given out. */
  table: PageTable;
  /** Disposed of with this image. */
  local: SparseImage | undefined;
  /** In order of preference. */
  holders: readonly Holder[];
  /** Pages, a power of two: an urgent fetch brings all of this size and alignment that are missing. @default 16 */
  readAhead?: number | undefined;
  /** Milliseconds after which a fetch gives up. @default 10_000 */
  giveUpMs?: number | undefined;
  /** Shared by images whose pages come over the same network. @default its own */
  slots?: BulkSlots | undefined;
}

export interface RemoteImageStats extends HolderStats {
  /** Urgent fetches that had to wait. */
  urgentFetches: number;
}

export interface PrefetchOptions {
  /** @default as fast as it goes */
  bytesPerSecond?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * A memory image on other hosts. Pages come from its holders one time, whoever asks and how often, are
 * checked against the page table, and kept in a local image. What that has from before is checked, too,
 * when it is first looked at: by `prefetch` at the latest, which has to be called for it to be complete.
 *
 * When the local image takes no more, pages are kept in a bounded memory. There those of a fetch stay
 * until the macrotask after its end, so read them at once; and no fetch can bring more than it holds.
 */
export class RemoteImage implements PageSource {
  readonly pages: number;
  readonly #table: PageTable;
  readonly #local: SparseImage | undefined;
  readonly #kept: KeptPages;
  readonly #holders: Holders;
  readonly #flights: Flights;
  readonly #giveUpMs: number;
  readonly #closing = new AbortController();
  #urgentFetches = 0;

  /** @throws FlurryError IMAGE_CORRUPT when the local image has another size */
  constructor(options: RemoteImageOptions) {
    const { table, local, name, holders, readAhead = 16, giveUpMs = 10_000 } = options;
    if (local && local.pages !== table.pages) {
      const sizes = `${local.pages} pages, and its table ${table.pages}`;
      throw new FlurryError("IMAGE_CORRUPT", `"${local.path}" has ${sizes}`);
    }
    this.pages = table.pages;
    this.#table = table;
    this.#local = local;
    this.#giveUpMs = giveUpMs;
    const closing = this.#closing.signal;
    const kept = new KeptPages(options);
    const source = new Holders({ name, table, holders, giveUpMs, closing });
    this.#kept = kept;
    this.#holders = source;
    const slots = options.slots ?? new BulkSlots();
    this.#flights = new Flights({ table, kept, holders: source, slots, readAhead, closing });
  }

  /** Whether all pages but zero ones are in the local image, and were checked. */
  get complete(): boolean {
    return this.#kept.complete;
  }

  get stats(): RemoteImageStats {
    return { ...this.#holders.stats, urgentFetches: this.#urgentFetches };
  }

  isZero(page: number): boolean {
    return this.#table.isZero(page);
  }

  read(page: number, count: number, target: Buffer, at: number): boolean {
    return this.#kept.read(page, count, target, at);
  }

  async fetch(page: number, count: number, options: FetchOptions = {}): Promise<void> {
    const { urgent = false, signal } = options;
    throwIfAborted(signal);
    const end = page + count;
    if (!(page >= 0 && count >= 0 && end <= this.pages)) {
      throw new FlurryError("BAD_ARGUMENT", `No pages ${page} to ${end} in an image of ${this.pages} pages`);
    }
    const missing = this.#missing(page, end);
    if (missing.length === 0) return;
    this.#checkRoom(missing.length);
    const until = performance.now() + this.#giveUpMs;
    if (urgent) this.#urgentFetches += 1;
    this.#kept.want(missing);
    try {
      await this.#flights.launch(page, end, { urgent, until, signal });
      await this.#arrival(missing, urgent, until, signal);
    } finally {
      setImmediate(() => this.#kept.unwant(missing));
    }
  }

  /**
   * Brings all pages that are missing in the background: those of `order` first, of which what are no
   * pages of the image is left out. Ends at once when they cannot be kept in a local image.
   *
   * @throws FlurryError PAGES_UNAVAILABLE; ABORTED. What is there then stays.
   */
  async prefetch(order: Iterable<number> = [], options: PrefetchOptions = {}): Promise<void> {
    const { signal, bytesPerSecond = Number.POSITIVE_INFINITY } = options;
    const most = Math.max(1, Math.min(MOST_PAGES, Math.floor((bytesPerSecond * PACED_PART) / PAGE_BYTES)));
    let at = performance.now();
    let failure: FlurryError | undefined;
    const pending = new Set<Promise<void>>();
    for (const { first, count } of planned(order, this.pages)) {
      if (first % SCANNED_PAGES === 0 || this.#kept.checking) await nextTurn();
      const end = first + count;
      for (let next = first; this.#flights.lacks(next, end); ) {
        await sleepUntil(at, signal);
        const until = () => performance.now() + this.#giveUpMs;
        const flight = await this.#flights.launchBulk(next, end, most, until, signal);
        if (!flight) break;
        next = flight.first + flight.count;
        at = Math.max(at, performance.now()) + (flight.count * PAGE_BYTES * 1000) / bytesPerSecond;
        const done = flight.done.then((error) => {
          failure ??= error;
          pending.delete(done);
        });
        pending.add(done);
      }
      if (failure || this.#kept.degraded) break;
    }
    const others = this.#flights.all.map(({ done }) => done);
    await orAborted(Promise.all([...pending, ...others]), signal);
    if (failure) throw failure;
    // What was on its way for others, and failed.
    if (!this.complete && !this.#kept.degraded) await this.prefetch([], options);
  }

  /** Gives up what is on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort(new Error("The image was closed"));
    await Promise.all(this.#flights.all.map(({ settled }) => settled));
    this.#local?.[Symbol.dispose]();
  }

  /** Refuses what memory could not hold at once, where there is no local image. */
  #checkRoom(pages: number): void {
    if (!this.#kept.degraded || pages <= this.#kept.most) return;
    const why = `there is no room on disk, and in memory for ${this.#kept.most} only`;
    throw new FlurryError("PAGES_UNAVAILABLE", `Cannot bring ${pages} pages: ${why}`);
  }

  #missing(first: number, end: number): number[] {
    const missing: number[] = [];
    for (let page = first; page < end; page++) if (!this.#kept.has(page)) missing.push(page);
    return missing;
  }

  /** Waits until the pages are here, and has those launched again whose flight failed for another. */
  async #arrival(
    pages: readonly number[],
    urgent: boolean,
    until: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    for (const page of pages) {
      while (!this.#kept.has(page)) {
        // Its own, which may have failed by now; none if others were faster, and are at an end, too.
        const [flight = this.#flights.of(page)] = this.#flights.of(page)
          ? []
          : await this.#flights.launch(page, page + 1, { urgent, until, signal });
        if (!flight) continue;
        flight.until = Math.max(flight.until, until);
        const error = await orAborted(flight.settled, signal);
        if (error) throw error;
      }
    }
  }
}

/** What to ask for, in order: runs of the given pages, and then all. */
function* planned(order: Iterable<number>, pages: number): Generator<{ first: number; count: number }> {
  let run = { first: 0, count: 0 };
  for (const page of order) {
    if (!(Number.isInteger(page) && page >= 0 && page < pages)) continue;
    if (page === run.first + run.count && run.count < MOST_PAGES) {
      run.count += 1;
      continue;
    }
    if (run.count > 0) yield run;
    run = { first: page, count: 1 };
  }
  if (run.count > 0) yield run;
  for (let first = 0; first < pages; first += MOST_PAGES) {
    yield { first, count: Math.min(MOST_PAGES, pages - first) };
  }
}

async function sleepUntil(at: number, signal: AbortSignal | undefined): Promise<void> {
  const left = at - performance.now();
  if (left > 0) await sleep(left, signal);
  else throwIfAborted(signal);
}
