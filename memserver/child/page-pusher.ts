import { setTimeout as delay } from "node:timers/promises";
import { FlurryError } from "../../errors/errors.ts";
import type { PageSource } from "../image/page-source.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import type { BackgroundOptions } from "./child-spec.ts";
import { Pacer } from "./pacer.ts";
import type { PageChannel } from "./page-channel.ts";
import { type PageLedger, type PageRun, runsOf } from "./page-ledger.ts";

/** Pages that are asked for together when they come from elsewhere. */
const WINDOW_PAGES = 256;

interface PagePusherOptions {
  source: PageSource;
  ledger: PageLedger;
  channel: PageChannel;
  /** Fires when the child is gone. */
  signal: AbortSignal;
}

/** Sends a child pages that it has not asked for, never faster than it takes them. */
export class PagePusher {
  readonly #options: PagePusherOptions;
  #pages = 0;
  #woken: PromiseWithResolvers<void> | undefined;

  constructor(options: PagePusherOptions) {
    this.#options = options;
  }

  /** Pages pushed so far. */
  get pages(): number {
    return this.#pages;
  }

  /** Says that a page which the guest waited for has been sent. */
  wake(): void {
    this.#woken?.resolve();
    this.#woken = undefined;
  }

  /** Sends these pages, in this order, in few large writes. The first of them before this returns. */
  async pushList(pages: Uint32Array): Promise<void> {
    for (let at = 0; at < pages.length && !this.#over; at += WINDOW_PAGES) {
      await this.#pushWindow(runsOf(pages.subarray(at, at + WINDOW_PAGES)));
    }
  }

  /** Sends all the rest but zero pages; returns when the child has been sent every page, or is gone. */
  async pushRest({ afterMs, bytesPerSecond }: BackgroundOptions): Promise<void> {
    const { ledger, signal } = this.#options;
    if (!(await pause(afterMs, signal))) return;
    const pacer = new Pacer(bytesPerSecond);
    for (let from = 0; !this.#over; ) {
      const window = this.#nextWindow(from);
      const last = window.at(-1);
      if (!last) break;
      from = last.page + last.count;
      const before = this.#pages;
      await this.#pushWindow(window);
      const wait = pacer.sent((this.#pages - before) * PAGE_BYTES);
      if (wait > 0 && !(await pause(wait, signal))) return;
    }
    while (ledger.awaited > 0 && !this.#over) await this.#nextWake();
  }

  get #over(): boolean {
    return this.#options.signal.aborted;
  }

  #nextWindow(from: number): PageRun[] {
    const window: PageRun[] = [];
    let count = 0;
    for (let next = from; count < WINDOW_PAGES; ) {
      const run = this.#options.ledger.nextOpen(next);
      if (!run) break;
      window.push(run);
      count += run.count;
      next = run.page + run.count;
    }
    return window;
  }

  async #pushWindow(runs: PageRun[]): Promise<void> {
    const { source, signal } = this.#options;
    const missing = await this.#send(runs);
    if (missing.length === 0 || this.#over) return;
    await Promise.all(missing.map(({ page, count }) => source.fetch(page, count, { signal })));
    if (this.#over) return;
    // Some may have been asked for, and sent, meanwhile.
    const [still] = await this.#send(missing);
    // What a child never gets it would read as zeros, at the end.
    if (still) throw new FlurryError("INTERNAL", `Page ${still.page} was fetched and is not there`);
  }

  /** Sends what is open of these pages. Returns those that are not on this host. */
  async #send(runs: PageRun[]): Promise<PageRun[]> {
    const { channel } = this.#options;
    const missing: PageRun[] = [];
    for (const run of runs) {
      this.#add(run, missing);
      if (channel.full) {
        // What counts as sent is on its way, and does not wait here.
        channel.flush();
        await channel.drained;
      }
      if (this.#over) return [];
    }
    channel.flush();
    await channel.drained;
    return missing;
  }

  #add({ page, count }: PageRun, missing: PageRun[]): void {
    const { ledger, channel, source } = this.#options;
    const open: number[] = [];
    for (let next = page; next < page + count; next++) {
      if (!ledger.isOpen(next)) continue;
      if (!source.isZero(next)) {
        open.push(next);
        continue;
      }
      channel.addZero(next);
      this.#sent(next, 1);
    }
    for (const run of runsOf(open)) {
      if (channel.addPages(run.page, run.count)) this.#sent(run.page, run.count);
      else missing.push(run);
    }
  }

  #sent(page: number, count: number): void {
    this.#options.ledger.sent(page, count);
    this.#pages += count;
  }

  async #nextWake(): Promise<void> {
    const { signal } = this.#options;
    this.#woken ??= Promise.withResolvers<void>();
    const onAbort = () => this.wake();
    signal.addEventListener("abort", onAbort, { once: true });
    await this.#woken.promise;
    signal.removeEventListener("abort", onAbort);
  }
}

/** Waits. Returns false when the signal has fired. */
async function pause(ms: number, signal: AbortSignal): Promise<boolean> {
  try {
    await delay(ms, undefined, { signal });
    return true;
  } catch (error) {
    if (signal.aborted) return false;
    throw error;
  }
}
