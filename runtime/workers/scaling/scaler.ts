import type { After } from "../../jobs/timer.ts";
import type { ChildStart } from "./child-start.ts";
import type { Fleet } from "./fleet.ts";
import type { IsolationRules } from "./isolation.ts";
import { PeakWindow } from "./peak-window.ts";
import type { ChildLike } from "./ports.ts";
import type { ServingChild } from "./serving-child.ts";
import type { ShellDemand } from "./shell-demand.ts";
import type { WaitQueue } from "./wait-queue.ts";
import type { Waiter } from "./waiter.ts";

export interface ScalerOptions<C extends ChildLike> {
  fleet: Fleet<C>;
  queue: WaitQueue<Waiter<C>>;
  rules: IsolationRules;
  shells: ShellDemand;
  after: After;
  maxChildren: number;
  keepShells: (count: number) => void;
  isRoomWanted: () => boolean;
  /** Called when something has become due. */
  onTimer: () => void;
}

/** Decides which child serves next, which are started, and which are retired. */
export class Scaler<C extends ChildLike> implements Disposable {
  readonly #options: ScalerOptions<C>;
  /** Children that demand needed, in shared mode. */
  readonly #needed: PeakWindow;
  #shells = 0;
  #timer: { at: number; timer: Disposable } | undefined;

  constructor(options: ScalerOptions<C>) {
    this.#options = options;
    this.#needed = new PeakWindow(options.rules.idleMs);
  }

  /** Shells that are asked for. */
  get shells(): number {
    return this.#shells;
  }

  /** A child with a place for a request of this session. */
  placeFor(key: string, now: number): ServingChild<C> | undefined {
    const { fleet, rules } = this.#options;
    if (rules.mode === "session") {
      const child = fleet.ofSession(key);
      return child && this.#hasPlace(child) ? child : undefined;
    }
    const newestFirst = [...fleet.open].reverse();
    // Those beyond what demand needs get requests only when the others are full, so that they fall idle.
    const most = rules.mode === "shared" ? this.#needed.peak(now) : newestFirst.length;
    const needed = this.#leastLoaded(newestFirst.slice(0, most));
    return needed ?? newestFirst.slice(most).find((child) => this.#hasPlace(child));
  }

  /** Retires those that are too old, and sees how many children those who wait and are served need. */
  prepare(now: number): void {
    const { fleet, rules } = this.#options;
    for (const child of fleet.open) {
      if (child.birth.readyAt + rules.maxAgeMs <= now) fleet.retire(child, "age");
    }
    this.#measureNeed(now);
  }

  /** Counts a fork that begins: the shell that it takes is one to keep ahead from now on. */
  forked(now: number): void {
    const { shells } = this.#options;
    shells.forked(now);
    this.#keepShells(shells.wanted(now));
  }

  /** Starts what is missing, retires what is too much, and sets the timer for the next time. */
  scale(now: number): void {
    this.#measureNeed(now);
    this.#retireIdle(now);
    this.#startMissing();
    this.#giveWay();
    this.#keepShells(this.#options.shells.wanted(now));
    this.#arm(now);
  }

  /** Ends the timer, and asks for no shells any more. */
  [Symbol.dispose](): void {
    this.#timer?.timer[Symbol.dispose]();
    this.#timer = undefined;
    this.#keepShells(0);
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
    let surplus = fleet.open.size + fleet.starts.size - this.#needed.peak(now);
    for (const child of fleet.open) {
      if (child.load > 0) continue;
      const isIdle = rules.mode === "shared" ? surplus > 0 : child.idleSince + rules.idleMs <= now;
      if (!isIdle) continue;
      fleet.retire(child, "idle");
      surplus -= 1;
    }
  }

  /** One at a time: whoever waits says so again while it still does. A session's child has state to keep. */
  #giveWay(): void {
    const { fleet, rules, isRoomWanted } = this.#options;
    if (rules.mode === "session") return;
    const idle = [...fleet.open].find(({ load }) => load === 0);
    if (idle && isRoomWanted()) fleet.retire(idle, "idle");
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
    for (const start of this.#options.fleet.starts) {
      if (start.abort.signal.aborted || start.key !== key) continue;
      if (mode === "session" || start.covers < concurrency) return start;
    }
    return undefined;
  }

  #keepShells(count: number): void {
    if (count === this.#shells) return;
    this.#shells = count;
    this.#options.keepShells(count);
  }

  #arm(now: number): void {
    const at = this.#nextTime(now);
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

  #nextTime(now: number): number {
    const { fleet, queue, rules, shells } = this.#options;
    const never = Number.POSITIVE_INFINITY;
    let at = Math.min(queue.deadline ?? never, shells.fallsAt(now) ?? never);
    if (rules.mode === "shared" && fleet.open.size > 0) at = Math.min(at, this.#needed.fallsAt ?? never);
    for (const { birth, load, idleSince } of fleet.open) {
      at = Math.min(at, birth.readyAt + rules.maxAgeMs);
      if (rules.mode !== "shared" && load === 0) at = Math.min(at, idleSince + rules.idleMs);
    }
    return at;
  }
}
