import { setImmediate as nextTurn } from "node:timers/promises";
import { FlurryError } from "../../errors/errors.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { orAborted, sleep } from "../waiting.ts";
import type { FetchOptions } from "./page-source.ts";
import type { PageTable } from "./page-table.ts";

/** First and longest wait in milliseconds before a holder that failed is asked again. */
const FIRST_WAIT_MS = 50;
const LONGEST_WAIT_MS = 1000;
/** So often at least it may be asked by somebody who then gives up. */
const TRIES = 4;
/** Pages that nobody waits for that are checked at a stretch. */
const CHECKED_PAGES = 16;

/** Somebody who has pages of an image. */
export interface Holder {
  /** For messages. */
  readonly name: string;
  /**
   * The pages of a range that are not zero, in order; they need not be checked. Undefined if it has not
   * all of them.
   *
   * @param count - 1 to 256
   * @throws when it cannot be reached, or the signal says so
   */
  read(first: number, count: number, options: FetchOptions): Promise<Buffer | undefined>;
}

/** Adjacent pages that are wanted. */
export interface Wanted {
  readonly first: number;
  readonly count: number;
  readonly urgent: boolean;
  /** Nobody waits for them yet, so that what somebody waits for may be checked before them. */
  readonly ahead: boolean;
  /** When to give up, by `performance.now()`. It may be put off. */
  readonly until: number;
}

export interface HoldersOptions {
  /** Of the image, for messages. */
  name: string;
  table: PageTable;
  /** In order of preference. */
  holders: readonly Holder[];
  /** Milliseconds that somebody waits for pages. */
  giveUpMs: number;
  closing: AbortSignal;
}

/** What became of the holders so far. */
export interface HolderStats {
  fetchedPages: number;
  /** Of these pages. */
  fetchedBytes: number;
  /** Answers that were not the pages that they should be. */
  badAnswers: number;
  /** Holders that could not be reached, or did not answer in time. */
  holderFailures: number;
}

interface Standing {
  readonly holder: Holder;
  /** Why it failed last. */
  reason: string | undefined;
  /** It has sent what was wrong, and is not asked again. */
  setAside: boolean;
  /** Not asked until then, by `performance.now()`. */
  restsUntil: number;
  /** Next wait; 0 after a success. */
  waitMs: number;
}

type Outcome = { data: Buffer } | "missing" | "failed";

/**
 * The holders of an image, in order of preference. Each answer is checked page by page; a holder that
 * fails is left alone for a while that grows, one that sends a wrong answer for good.
 */
export class Holders {
  readonly stats: HolderStats = { fetchedPages: 0, fetchedBytes: 0, badAnswers: 0, holderFailures: 0 };
  readonly #name: string;
  readonly #table: PageTable;
  readonly #standings: readonly Standing[];
  readonly #closing: AbortSignal;
  readonly #longestWaitMs: number;

  constructor(options: HoldersOptions) {
    this.#name = options.name;
    this.#table = options.table;
    this.#closing = options.closing;
    this.#longestWaitMs = Math.min(LONGEST_WAIT_MS, options.giveUpMs / TRIES);
    this.#standings = options.holders.map((holder) => ({
      ...{ holder, reason: undefined, setAside: false, restsUntil: 0, waitMs: 0 },
    }));
  }

  /**
   * The pages of a range that are not zero, checked; undefined if those holders that answered have not
   * all of several pages, but may have some.
   *
   * @throws FlurryError PAGES_UNAVAILABLE with each holder's last reason
   */
  async get(wanted: Wanted): Promise<Buffer | undefined> {
    // A holder that lacks the pages may have them soon.
    for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(waitMs * 2, this.#longestWaitMs)) {
      const asked = this.#ready(wanted.urgent);
      let missing = false;
      for (const [at, standing] of asked.entries()) {
        // What time there is, is shared with those who come after.
        const limitMs = (wanted.until - performance.now()) / (asked.length - at);
        if (limitMs <= 0 || this.#closing.aborted) break;
        const outcome = await this.#ask(standing, wanted, limitMs);
        if (typeof outcome === "object") return outcome.data;
        if (outcome === "missing") missing = true;
      }
      if (missing && wanted.count > 1 && !this.#closing.aborted) return undefined;
      await this.#rest(wanted, waitMs);
    }
  }

  /** Those who may be asked now. A guest that waits is no occasion to try one that failed last time. */
  #ready(urgent: boolean): Standing[] {
    const now = performance.now();
    const ready = this.#standings.filter(({ setAside, restsUntil }) => !setAside && restsUntil <= now);
    return urgent ? ready.toSorted((a, b) => Number(a.waitMs > 0) - Number(b.waitMs > 0)) : ready;
  }

  /** Waits until the next one may be asked that failed, or for that long. */
  async #rest(wanted: Wanted, waitMs: number): Promise<void> {
    const usable = this.#standings.filter(({ setAside }) => !setAside);
    const now = performance.now();
    if (usable.length === 0 || now >= wanted.until || this.#closing.aborted) throw this.#unavailable(wanted);
    const waits = usable.map(({ restsUntil }) => (restsUntil > now ? restsUntil - now : waitMs));
    try {
      await sleep(Math.min(...waits, wanted.until - now), this.#closing);
    } catch (error) {
      throw this.#unavailable(wanted, error);
    }
  }

  async #ask(standing: Standing, wanted: Wanted, limitMs: number): Promise<Outcome> {
    try {
      const { first, count, urgent } = wanted;
      const data = await bounded(limitMs, this.#closing, (signal) =>
        standing.holder.read(first, count, { urgent, signal }),
      );
      standing.waitMs = 0;
      if (!data) {
        standing.reason = `it has not all of ${named(first, count)}`;
        return "missing";
      }
      const wrong = await this.#check(wanted, data);
      if (wrong === undefined) return { data };
      standing.setAside = true;
      standing.reason = `it was set aside, since it sent ${wrong}`;
      this.stats.badAnswers += 1;
    } catch (error) {
      standing.reason = error instanceof Error ? error.message : String(error);
      if (this.#closing.aborted) return "failed";
      standing.waitMs = Math.min(Math.max(standing.waitMs * 2, FIRST_WAIT_MS), this.#longestWaitMs);
      standing.restsUntil = performance.now() + standing.waitMs;
      this.stats.holderFailures += 1;
    }
    return "failed";
  }

  /** What is wrong with an answer, if anything. */
  async #check({ first, count, ahead }: Wanted, data: Buffer): Promise<string | undefined> {
    let at = 0;
    if (ahead) await nextTurn();
    for (let page = first; page < first + count; page++) {
      if (this.#table.isZero(page)) continue;
      if (at + PAGE_BYTES > data.length) return `${data.length} bytes, which is too little`;
      if (!this.#table.matches(page, data.subarray(at, at + PAGE_BYTES))) return `a wrong page ${page}`;
      at += PAGE_BYTES;
      if (ahead && at % (CHECKED_PAGES * PAGE_BYTES) === 0) await nextTurn();
    }
    if (at !== data.length) return `${data.length} bytes instead of ${at}`;
    this.stats.fetchedPages += at / PAGE_BYTES;
    this.stats.fetchedBytes += at;
    return undefined;
  }

  #unavailable({ first, count }: Wanted, cause?: unknown): FlurryError {
    const reasons = this.#standings.map(
      ({ holder, reason }) => `${holder.name}: ${reason ?? "it was not asked"}`,
    );
    const why = this.#closing.aborted ? "the image was closed" : reasons.join("; ") || "it has no holders";
    return new FlurryError(
      "PAGES_UNAVAILABLE",
      `Cannot get ${named(first, count)} of image ${this.#name}: ${why}`,
      {
        cause,
      },
    );
  }
}

function named(first: number, count: number): string {
  return count === 1 ? `page ${first}` : `pages ${first} to ${first + count - 1}`;
}

/** Gives work so many milliseconds; what it does after that is its own. */
async function bounded<T>(
  ms: number,
  closing: AbortSignal,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const late = new Error(`no answer in ${Math.round(ms)} ms`);
  const timer = setTimeout(() => controller.abort(late), ms);
  const onClosing = () => controller.abort(closing.reason);
  closing.addEventListener("abort", onClosing, { once: true });
  try {
    return await orAborted(work(controller.signal), controller.signal);
  } catch (error) {
    throw controller.signal.reason === late ? late : error;
  } finally {
    clearTimeout(timer);
    closing.removeEventListener("abort", onClosing);
  }
}
