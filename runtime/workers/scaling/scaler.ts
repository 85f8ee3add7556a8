import type { After } from "../../jobs/timer.ts";
import { type AheadRule, MAX_AHEAD_MS } from "./ahead-rule.ts";
import type { ChildStart } from "./child-start.ts";
import type { Fleet } from "./fleet.ts";
import type { IsolationRules } from "./isolation.ts";
import { PeakWindow } from "./peak-window.ts";
import type { ChildLike } from "./ports.ts";
import type { ServingChild } from "./serving-child.ts";
import type { WaitQueue } from "./wait-queue.ts";
import type { Waiter } from "./waiter.ts";

export interface ScalerOptions<C extends ChildLike> {
  fleet: Fleet<C>;
  queue: WaitQueue<Waiter<C>>;
  rules: IsolationRules;
  ahead: AheadRule;
  after: After;
  maxChildren: number;
  isRoomWanted: () => boolean;
  /** Called when something has become due. */
  onTimer: () => void;
}

/** Decides which child serves next, which are started, and which are retired. */
export class Scaler<C extends ChildLike> implements Disposable {
  readonly #options: ScalerOptions<C>;
  /** Children that demand needed, in shared mode. */
  readonly #needed: PeakWindow;
  #timer: { at: number; timer: Disposable } | undefined;

  constructor(options: ScalerOptions<C>) {
    this.#options = options;
    this.#needed = new PeakWindow(options.rules.idleMs);
  }

  /** A child with a place for a request of this session. */
  placeFor(key: string, now: number): ServingChild<C> | undefined {
    const { fleet, rules } = this.#options;
    const [spare] = fleet.spares;
    if (rules.mode === "request") return spare;
    if (rules.mode === "session") {
      const child = fleet.ofSession(key);
      if (child) return this.#hasPlace(child) ? child : undefined;
      return spare;
    }
    const newestFirst = [...fleet.open].reverse();
    // Those beyond what demand needs get requests only when the others are full, so that they fall idle.
    const most = this.#needed.peak(now);
    const needed = this.#leastLoaded(newestFirst.slice(0, most));
    return needed ?? newestFirst.slice(most).find((child) => this.#hasPlace(child)) ?? spare;
  }

  /** Retires those that are too old, and sees how many children those who wait and are served need. */
  prepare(now: number): void {
    const { fleet, rules } = this.#options;
    for (const child of fleet.open) {
      if (child.birth.readyAt + rules.maxAgeMs <= now) fleet.retire(child, "age");
    }
    for (const child of fleet.spares) if (this.#endOfSpare(child) <= now) fleet.retire(child, "idle");
    this.#measureNeed(now);
  }

  /** Starts what is missing, retires what is too much, and sets the timer for the next time. */
  scale(now: number): void {
    this.#measureNeed(now);
    this.#retireIdle(now);
    this.#startMissing();
    this.giveWay();
    this.#arm(now);
  }

  /** Forks children ahead of need if some are wanted, and the host has nothing better to do. */
  forkAhead(now: number): void {
    const { fleet, rules, ahead } = this.#options;
    const coming = [...fleet.starts].filter(({ isFree }) => isFree).length;
    // Idle children of sessions are for those sessions only.
    const idle = rules.mode === "shared" ? [...fleet.open].filter(({ load }) => load === 0).length : 0;
    let ready = fleet.spares.size + coming + idle;
    while (fleet.hasRoom && ahead.wantsMore(ready, now) && fleet.startAhead()) {
      ahead.forked();
      ready += 1;
    }
  }

  /** Has no children ahead of need any more. */
  stopAhead(): void {
    const { fleet, ahead } = this.#options;
    ahead.stop();
    for (const child of fleet.spares) fleet.retire(child, "idle");
    for (const start of fleet.starts) if (start.isFree) start.abort.abort();
  }

  /**
   * Ends a child without requests if others wait for room on the host: one that nobody has used, or else one
   * that is idle. One at a time: whoever waits says so again while it still does.
   *
   * @returns whether a child is being ended, so that there is room soon
   */
  giveWay({ unusedOnly = false } = {}): boolean {
    const { fleet, rules, isRoomWanted } = this.#options;
    const [spare] = fleet.spares;
    // A session's child has state to keep.
    const isOpen = !unusedOnly && rules.mode !== "session";
    const idle = isOpen ? [...fleet.open].find(({ load }) => load === 0) : undefined;
    const child = spare ?? idle;
    if (child && !fleet.isEnding && isRoomWanted()) fleet.retire(child, "idle");
    return fleet.isEnding;
  }

  /** Ends the timer. */
  [Symbol.dispose](): void {
    this.#timer?.timer[Symbol.dispose]();
    this.#timer = undefined;
  }

  #endOfSpare({ birth }: ServingChild<C>): number {
    const { idleMs, maxAgeMs } = this.#options.rules;
    const kept = birth.isAhead ? birth.forkedAt + MAX_AHEAD_MS : birth.readyAt + idleMs;
    return Math.min(kept, birth.readyAt + maxAgeMs);
  }

  #hasPlace(child: ServingChild<C>): boolean {
    return child.load < this.#options.rules.concurrency;
  }

  #leastLoaded(children: readonly ServingChild<C>[]): ServingChild<C> | undefined {
    let best: ServingChild<C> | undefined;
    for (const child of children) {
      if (this.#hasPlace(child) && (!best || child.load < best.load)) best = child;
    }
    return best;
  }

  #measureNeed(now: number): void {
    const { fleet, queue, rules, maxChildren } = this.#options;
    const children = Math.ceil((fleet.openLoad + queue.size) / rules.concurrency);
    this.#needed.set(Math.min(maxChildren, children), now);
  }

  #retireIdle(now: number): void {
    const { fleet, rules } = this.#options;
    const starts = [...fleet.starts].filter(({ isFree }) => !isFree).length;
    let surplus = fleet.open.size + starts - this.#needed.peak(now);
    for (const child of fleet.open) {
      if (child.load > 0) continue;
      const isIdle = rules.mode === "shared" ? surplus > 0 : child.idleSince + rules.idleMs <= now;
      if (!isIdle) continue;
      fleet.retire(child, "idle");
      surplus -= 1;
    }
  }

  #startMissing(): void {
    const { fleet, queue, rules } = this.#options;
    const isSession = rules.mode === "session";
    for (const waiter of queue.all()) {
      if (waiter.cover || (isSession && fleet.ofSession(waiter.key))) continue;
      const start = this.#startFor(waiter.key) ?? (fleet.hasRoom ? fleet.start(waiter.key) : undefined);
      start?.cover(waiter);
      // In session mode somebody who came later may wait for a child that is on its way.
      if (!start && !isSession) break;
    }
    for (const start of fleet.starts) {
      // What is forked already is let come: to begin anew for the next one would take longer.
      if (start.covers === 0 && start.phase === "admitting") start.abort.abort();
    }
  }

  /** A child on its way that has room for one more. */
  #startFor(key: string): ChildStart | undefined {
    const { mode, concurrency } = this.#options.rules;
    const starts = [...this.#options.fleet.starts].filter(({ abort }) => !abort.signal.aborted);
    const own = (start: ChildStart) =>
      start.key === key && (mode === "session" || start.covers < concurrency);
    const start = starts.find((one) => !one.isFree && own(one)) ?? starts.find(({ isFree }) => isFree);
    if (start?.isFree) start.key = key;
    return start;
  }

  #arm(now: number): void {
    const at = this.#nextTime();
    if (this.#timer?.at === at) return;
    this.#timer?.timer[Symbol.dispose]();
    this.#timer = undefined;
    if (at === Number.POSITIVE_INFINITY) return;
    // At least 1 ms: a time that is due by less than the clock can tell would come again and again.
    const timer = this.#options.after(Math.max(1, Math.ceil(at - now)), () => {
      this.#timer = undefined;
      this.#options.onTimer();
    });
    this.#timer = { at, timer };
  }

  #nextTime(): number {
    const { fleet, queue, rules } = this.#options;
    const never = Number.POSITIVE_INFINITY;
    let at = queue.deadline ?? never;
    if (rules.mode === "shared" && fleet.open.size > 0) at = Math.min(at, this.#needed.fallsAt ?? never);
    for (const { birth, load, idleSince } of fleet.open) {
      at = Math.min(at, birth.readyAt + rules.maxAgeMs);
      if (rules.mode !== "shared" && load === 0) at = Math.min(at, idleSince + rules.idleMs);
    }
    for (const spare of fleet.spares) at = Math.min(at, this.#endOfSpare(spare));
    return at;
  }
}
