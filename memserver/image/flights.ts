import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { throwIfAborted } from "../waiting.ts";
import type { BulkSlots } from "./bulk-slots.ts";
import type { Holders, Wanted } from "./holders.ts";
import type { KeptPages } from "./kept-pages.ts";
import type { FetchOptions } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";

/** Pages of one request. */
export const MOST_PAGES = 256;

/** Adjacent pages on their way. Those between them that are zero are not. */
export interface Flight extends Wanted {
  until: number;
  /** The error if it failed. Pages of a flight that was split are in others then. */
  readonly settled: Promise<FlurryError | undefined>;
  /** The error if it, or any that it was split into, failed. */
  readonly done: Promise<FlurryError | undefined>;
}

export interface FlightsOptions {
  table: PageTable;
  kept: KeptPages;
  holders: Holders;
  slots: BulkSlots;
  /** Pages. */
  readAhead: number;
  closing: AbortSignal;
}

/** What of an image is on its way here: no page more than once at a time. */
export class Flights {
  readonly #options: FlightsOptions;
  /** By page. */
  readonly #inFlight = new Map<number, Flight>();
  readonly #all = new Set<Flight>();

  constructor(options: FlightsOptions) {
    this.#options = options;
  }

  get all(): Flight[] {
    return [...this.#all];
  }

  of(page: number): Flight | undefined {
    return this.#inFlight.get(page);
  }

  /** Whether pages of a range are neither here nor on their way. */
  lacks(first: number, end: number): boolean {
    return this.#run(first, end) !== undefined;
  }

  /**
   * Launches what a range lacks: at once if it is urgent, else as there is room.
   *
   * @returns what was launched, without what is read ahead
   * @throws FlurryError ABORTED; PAGES_UNAVAILABLE when the image was closed
   */
  async launch(
    page: number,
    end: number,
    { urgent = false, until, signal }: FetchOptions & { until: number },
  ): Promise<Flight[]> {
    if (urgent) return this.#launchUrgent(page, end, until);
    const launched: Flight[] = [];
    for (let next = page; this.lacks(next, end); ) {
      const flight = await this.launchBulk(next, end, MOST_PAGES, () => until, signal);
      if (!flight) break;
      launched.push(flight);
      next = flight.first + flight.count;
    }
    return launched;
  }

  /**
   * Launches the first run of what a range lacks when there is room. Others may have done so meanwhile.
   *
   * @param most - pages
   * @throws FlurryError ABORTED; PAGES_UNAVAILABLE when the image was closed
   */
  async launchBulk(
    first: number,
    end: number,
    most: number,
    until: () => number,
    signal: AbortSignal | undefined,
  ): Promise<Flight | undefined> {
    const { slots } = this.#options;
    await this.#room(signal);
    const run = this.#run(first, end, most);
    slots.charge(run?.count ?? 0);
    if (run) return this.#begin({ ...run, urgent: false, ahead: true, until: until() });
    slots.release(0);
    return undefined;
  }

  /** Waits for room, but no longer than the image is open: others may have all of it for long. */
  async #room(signal: AbortSignal | undefined): Promise<void> {
    const { slots, closing } = this.#options;
    try {
      await slots.acquire(signal ? AbortSignal.any([signal, closing]) : closing);
    } catch (error) {
      throwIfAborted(signal);
      throw new FlurryError("PAGES_UNAVAILABLE", "Cannot get pages: the image was closed", { cause: error });
    }
  }

  /** What a guest waits for goes before what it may want next, in a request of its own. */
  #launchUrgent(page: number, end: number, until: number): Flight[] {
    const { readAhead, table } = this.#options;
    const first = page - (page % readAhead);
    const last = Math.min(Math.ceil(end / readAhead) * readAhead, table.pages);
    const launched = this.#beginAll(page, end, false, until);
    this.#beginAll(end, last, true, until);
    this.#beginAll(first, page, true, until);
    return launched;
  }

  #beginAll(first: number, end: number, ahead: boolean, until: number): Flight[] {
    const begun: Flight[] = [];
    for (let run = this.#run(first, end); run; run = this.#run(first, end)) {
      begun.push(this.#begin({ ...run, urgent: true, ahead, until }));
    }
    return begun;
  }

  /** The first pages of a range that are neither here nor on their way, with zero pages between them. */
  #run(first: number, end: number, most = MOST_PAGES): { first: number; count: number } | undefined {
    const lacks = (page: number) => !this.#options.kept.has(page) && !this.#inFlight.has(page);
    let start = first;
    while (start < end && !lacks(start)) start += 1;
    if (start === end) return undefined;
    let last = start;
    for (let page = start + 1; page < Math.min(end, start + most); page++) {
      if (lacks(page)) last = page;
      else if (!this.#options.table.isZero(page)) break;
    }
    return { first: start, count: last - start + 1 };
  }

  #begin(wanted: Wanted): Flight {
    const settled = Promise.withResolvers<FlurryError | undefined>();
    const done = Promise.withResolvers<FlurryError | undefined>();
    const flight: Flight = { ...wanted, settled: settled.promise, done: done.promise };
    const { first, count, urgent } = wanted;
    this.#all.add(flight);
    for (let page = first; page < first + count; page++) {
      if (!this.#options.table.isZero(page)) this.#inFlight.set(page, flight);
    }
    if (urgent) this.#options.slots.urgentBegins();
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
      data = await this.#options.holders.get(flight);
      if (data) this.#keep(flight, data);
    } catch (error) {
      failure = asUnavailable(error);
    }
    this.#land(flight);
    return { failure, halves: data || failure ? [] : this.#split(flight) };
  }

  #land(flight: Flight): void {
    this.#all.delete(flight);
    for (let page = flight.first; page < flight.first + flight.count; page++) this.#inFlight.delete(page);
    if (flight.urgent) this.#options.slots.urgentEnds();
    else this.#options.slots.release(flight.count);
  }

  /** Holders that have not all of the pages may have some. */
  #split({ first, count, urgent, ahead, until }: Flight): Flight[] {
    const middle = first + Math.ceil(count / 2);
    const halves = [this.#run(first, middle), this.#run(middle, first + count)];
    return halves.flatMap((half) => {
      if (!half) return [];
      if (!urgent) this.#options.slots.take(half.count);
      return [this.#begin({ ...half, urgent, ahead, until })];
    });
  }

  #keep({ first, count }: Flight, data: Buffer): void {
    let at = 0;
    for (let page = first; page < first + count; ) {
      let run = 0;
      while (page + run < first + count && !this.#options.table.isZero(page + run)) run += 1;
      if (run > 0) this.#options.kept.keep(page, data.subarray(at, at + run * PAGE_BYTES));
      at += run * PAGE_BYTES;
      page += Math.max(run, 1);
    }
  }
}

function asUnavailable(error: unknown): FlurryError {
  if (error instanceof FlurryError) return error;
  const what = error instanceof Error ? error.message : String(error);
  return new FlurryError("PAGES_UNAVAILABLE", what, { cause: error });
}
