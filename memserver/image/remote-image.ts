import { setImmediate as nextTurn } from "node:timers/promises";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { orAborted, sleep, throwIfAborted } from "../waiting.ts";
import { BulkSlots } from "./bulk-slots.ts";
import { type Holder, type HolderStats, Holders, type Wanted } from "./holders.ts";
import { KeptPages, type KeptPagesOptions } from "./kept-pages.ts";
import type { FetchOptions, PageSource } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";
import type { SparseImage } from "./sparse-image.ts";

/** Pages of one request. */
const MOST_PAGES = 256;
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

/** Adjacent pages on their way. Those between them that are zero are not. */
interface Flight extends Wanted {
  until: number;
  /** The error if it failed. Pages of a flight that was split are in others then. */
  readonly settled: Promise<FlurryError | undefined>;
  /** The error if it, or any that it was split into, failed. */
  readonly done: Promise<FlurryError | undefined>;
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
  readonly #readAhead: number;
  readonly #giveUpMs: number;
  readonly #closing = new AbortController();
  readonly #slots: BulkSlots;
  /** By page. */
  readonly #inFlight = new Map<number, Flight>();
  readonly #flights = new Set<Flight>();
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
    this.#readAhead = readAhead;
    this.#giveUpMs = giveUpMs;
    this.#slots = options.slots ?? new BulkSlots();
    this.#kept = new KeptPages(options);
    this.#holders = new Holders({ name, table, holders, giveUpMs, closing: this.#closing.signal });
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
      if (urgent) this.#launchUrgent(page, end, until);
      else await this.#launchBulk(page, end, until, signal);
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
    for (const { first, count } of planned(order, this.pages)) {
      if (first % SCANNED_PAGES === 0 || this.#kept.checking) await nextTurn();
      const end = first + count;
      for (let next = first; this.#run(next, end); ) {
        await sleepUntil(at, signal);
        await this.#slots.acquire(signal);
        const flight = this.#launchSlot(next, end, most);
        if (!flight) break;
        next = flight.first + flight.count;
        at = Math.max(at, performance.now()) + (flight.count * PAGE_BYTES * 1000) / bytesPerSecond;
        void flight.done.then((error) => {
          failure ??= error;
        });
      }
      if (failure || this.#kept.degraded) break;
    }
    await orAborted(Promise.all([...this.#flights].map(({ done }) => done)), signal);
    if (failure) throw failure;
    // What was on its way for others, and failed.
    if (!this.complete && !this.#kept.degraded) await this.prefetch([], options);
  }

  /** Gives up what is on its way. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort(new Error("The image was closed"));
    await Promise.all([...this.#flights].map(({ settled }) => settled));
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
        if (!this.#inFlight.has(page)) {
          if (urgent) this.#launchUrgent(page, page + 1, until);
          else await this.#launchBulk(page, page + 1, until, signal);
        }
        const flight = this.#inFlight.get(page);
        if (!flight) continue;
        flight.until = Math.max(flight.until, until);
        const error = await orAborted(flight.settled, signal);
        if (error) throw error;
      }
    }
  }

  /** What a guest waits for goes before what it may want next, in a request of its own. */
  #launchUrgent(page: number, end: number, until: number): void {
    const first = page - (page % this.#readAhead);
    const last = Math.min(Math.ceil(end / this.#readAhead) * this.#readAhead, this.pages);
    for (const { from, to, ahead } of [
      { from: page, to: end, ahead: false },
      { from: end, to: last, ahead: true },
      { from: first, to: page, ahead: true },
    ]) {
      for (let run = this.#run(from, to); run; run = this.#run(from, to)) {
        this.#launch({ ...run, urgent: true, ahead, until });
      }
    }
  }

  async #launchBulk(
    first: number,
    end: number,
    until: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    for (let next = first; this.#run(next, end); ) {
      await this.#slots.acquire(signal);
      const flight = this.#launchSlot(next, end, MOST_PAGES, until);
      if (!flight) return;
      next = flight.first + flight.count;
    }
  }

  /** Launches the first run of a range in a slot that was acquired; others may have done so meanwhile. */
  #launchSlot(first: number, end: number, most: number, until?: number): Flight | undefined {
    const run = this.#run(first, end, most);
    this.#slots.charge(run?.count ?? 0);
    if (!run) {
      this.#slots.release(0);
      return undefined;
    }
    const plain = { urgent: false, ahead: true, until: until ?? performance.now() + this.#giveUpMs };
    return this.#launch({ ...run, ...plain });
  }

  /** The first pages of a range that are neither here nor on their way, with zero pages between them. */
  #run(first: number, end: number, most = MOST_PAGES): { first: number; count: number } | undefined {
    const lacks = (page: number) => !this.#kept.has(page) && !this.#inFlight.has(page);
    let start = first;
    while (start < end && !lacks(start)) start += 1;
    if (start === end) return undefined;
    let last = start;
    for (let page = start + 1; page < Math.min(end, start + most); page++) {
      if (lacks(page)) last = page;
      else if (!this.#table.isZero(page)) break;
    }
    return { first: start, count: last - start + 1 };
  }

  #launch(wanted: Wanted): Flight {
    const settled = Promise.withResolvers<FlurryError | undefined>();
    const done = Promise.withResolvers<FlurryError | undefined>();
    const flight: Flight = { ...wanted, settled: settled.promise, done: done.promise };
    const { first, count, urgent } = wanted;
    this.#flights.add(flight);
    for (let page = first; page < first + count; page++) {
      if (!this.#table.isZero(page)) this.#inFlight.set(page, flight);
    }
    if (urgent) this.#slots.urgentBegins();
    void this.#fly(flight).then(async ({ failure, halves }) => {
      settled.resolve(failure);
      const failures = await Promise.all(halves.map((half) => half.done));
      done.resolve(failure ?? failures.find((one) => one !== undefined));
    });
    return flight;
  }

  async #fly(flight: Flight): Promise<{ failure: FlurryError | undefined; halves: Flight[] }> {
    let data: Buffer | undefined;
    let failure: FlurryError | undefined;
    try {
      data = await this.#holders.get(flight);
      if (data) this.#keep(flight, data);
    } catch (error) {
      failure = asUnavailable(error);
    }
    this.#land(flight);
    return { failure, halves: data || failure ? [] : this.#split(flight) };
  }

  #land(flight: Flight): void {
    this.#flights.delete(flight);
    for (let page = flight.first; page < flight.first + flight.count; page++) this.#inFlight.delete(page);
    if (flight.urgent) this.#slots.urgentEnds();
    else this.#slots.release(flight.count);
  }

  /** Holders that have not all of the pages may have some. */
  #split({ first, count, urgent, ahead, until }: Flight): Flight[] {
    const middle = first + Math.ceil(count / 2);
    const halves = [this.#run(first, middle), this.#run(middle, first + count)];
    return halves.flatMap((half) => {
      if (!half) return [];
      if (!urgent) this.#slots.take(half.count);
      return [this.#launch({ ...half, urgent, ahead, until })];
    });
  }

  #keep({ first, count }: Flight, data: Buffer): void {
    let at = 0;
    for (let page = first; page < first + count; ) {
      let run = 0;
      while (page + run < first + count && !this.#table.isZero(page + run)) run += 1;
      if (run > 0) this.#kept.keep(page, data.subarray(at, at + run * PAGE_BYTES));
      at += run * PAGE_BYTES;
      page += Math.max(run, 1);
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

function asUnavailable(error: unknown): FlurryError {
  if (error instanceof FlurryError) return error;
  const what = error instanceof Error ? error.message : String(error);
  return new FlurryError("PAGES_UNAVAILABLE", what, { cause: error });
}
