import type { Clock } from "../../clock.ts";
import { CallError } from "./call-error.ts";
import type { Ending } from "./ending.ts";

/** A child of a ticket, as the one who joins it sees it. */
export interface TicketChild {
  index: number;
  /** Its VM, or "-" if there was none. */
  readonly vm: string;
  readonly ended: Promise<Ending>;
  kill(reason: string): Promise<boolean>;
}

/** A reservation of places for children, then those children until each has been told of. */
export class ForkTicket implements Disposable {
  readonly name: string;
  readonly granted: number;
  readonly #places: Disposable[];
  readonly #timer: ReturnType<typeof setTimeout>;
  readonly #untold: { child: TicketChild; ending: Ending }[] = [];
  readonly #waiting = new Set<() => void>();
  #children: readonly TicketChild[] | undefined;
  #running = 0;
  #isExpired = false;

  /**
   * @param places - one for each child; given back when it expires
   * @param lifeMs - until it expires if it is not used
   */
  constructor(name: string, places: Disposable[], lifeMs: number) {
    this.name = name;
    this.granted = places.length;
    this.#places = places;
    this.#timer = setTimeout(() => {
      this.#isExpired = true;
      this[Symbol.dispose]();
    }, lifeMs);
    this.#timer.unref?.();
  }

  /** Gives its places to children. @throws CallError TICKET_USED, TICKET_EXPIRED */
  use(): Disposable[] {
    if (this.#children) throw new CallError("TICKET_USED", `Ticket ${this.name} has children already`);
    if (this.#isExpired) throw new CallError("TICKET_EXPIRED", `Ticket ${this.name} was not used in time`);
    clearTimeout(this.#timer);
    this.#children = [];
    return this.#places.splice(0);
  }

  /** Takes places back: nothing came of them, and it may be used again. */
  unuse(places: Disposable[]): void {
    this.#children = undefined;
    this.#places.push(...places);
  }

  begin(children: readonly TicketChild[]): void {
    this.#children = children;
    this.#running = children.length;
    for (const child of children) {
      void child.ended.then((ending) => {
        this.#running -= 1;
        this.#untold.push({ child, ending });
        for (const wake of this.#waiting) wake();
      });
    }
  }

  /**
   * The next child that has ended and was not told of; undefined when there is none any more.
   *
   * @throws CallError TICKET_UNKNOWN when it was not used; JOIN_TIMEOUT
   */
  async next(
    waitMs: number | undefined,
    signal: AbortSignal,
    clock: Clock,
  ): Promise<{ child: TicketChild; ending: Ending } | undefined> {
    if (!this.#children) throw new CallError("TICKET_UNKNOWN", `Ticket ${this.name} has no children yet`);
    const until = waitMs === undefined ? undefined : clock.now() + waitMs;
    for (;;) {
      const next = this.#untold.shift();
      // What has been told of is not needed any more.
      if (this.isOver) this.#children = [];
      if (next) return next;
      if (this.#running === 0) return undefined;
      if (signal.aborted) throw new CallError("FORK_FAILED", "This VM is ending");
      const leftMs = until === undefined ? undefined : until - clock.now();
      if (leftMs !== undefined && leftMs <= 0) {
        throw new CallError("JOIN_TIMEOUT", `No child of ticket ${this.name} has ended in ${waitMs} ms`);
      }
      await this.#news(leftMs, signal);
    }
  }

  /** Whether it expired, or all of its children have been told of. */
  get isOver(): boolean {
    return (
      this.#isExpired || (this.#children !== undefined && this.#running === 0 && this.#untold.length === 0)
    );
  }

  /** Ends all children that run; how many those were. */
  async kill(): Promise<number> {
    const killed = await Promise.all((this.#children ?? []).map((child) => child.kill("kill was called")));
    return killed.filter(Boolean).length;
  }

  /** Gives back the places of one that was not used. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    for (const place of this.#places.splice(0)) place[Symbol.dispose]();
  }

  async #news(leftMs: number | undefined, signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = () => resolve();
    const timer = leftMs === undefined ? undefined : setTimeout(wake, leftMs);
    this.#waiting.add(wake);
    signal.addEventListener("abort", wake, { once: true });
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(wake);
      signal.removeEventListener("abort", wake);
    }
  }
}
