import { codeOf, FlurryError } from "../../../errors/errors.ts";
import { type Clock, systemClock } from "../../clock.ts";
import { type After, systemAfter } from "../../jobs/timer.ts";
import { abortError, throwIfAborted } from "../../vm/qemu-process.ts";
import { AheadRule } from "./ahead-rule.ts";
import type { Attempt, RequestWork } from "./attempt.ts";
import { Fleet } from "./fleet.ts";
import { type Isolation, type IsolationRules, requireCount, requirePositive, rulesOf } from "./isolation.ts";
import type { ChildLike, ScalingPorts } from "./ports.ts";
import { type Counters, countWait, newCounters, type RouterStats } from "./router-stats.ts";
import { Scaler } from "./scaler.ts";
import { ServiceTime } from "./service-time.ts";
import { WaitQueue } from "./wait-queue.ts";
import { Waiter } from "./waiter.ts";

/** Errors of work by which a child shows that it is gone, maybe before its process is. */
const DEATHS: ReadonlySet<string | undefined> = new Set(["CHILD_DIED", "AGENT_CLOSED"]);
/** Errors of a start after which another one would fail as well: there will be no room, or forks keep failing. */
const FINAL: ReadonlySet<string | undefined> = new Set(["ADMISSION_REFUSED", "NOT_READY"]);

export interface RequestRouterOptions<C extends ChildLike> {
  ports: ScalingPorts<C>;
  isolation: Isolation;
  /** Children at most, from the moment they wait for admission until they are gone. @default 100 */
  maxChildren?: number | undefined;
  /** Requests that wait at most, also for a fork. @default 1000 */
  maxQueue?: number | undefined;
  /** Milliseconds after its arrival until which a request may wait for a child. @default 10000 */
  queueMs?: number | undefined;
  /** Children that may fail one request before anything of it was sent. @default 3 */
  attempts?: number | undefined;
  /** Children that are forked ahead of need at most: see `AheadRule`. @default 0 */
  ahead?: number | undefined;
  clock?: Clock | undefined;
  after?: After | undefined;
}

export interface ServeOptions {
  /** Session key; needed in session mode, and without a meaning in the others. */
  session?: string | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * Gives the requests of one worker version their children, which are forked as they are needed and
 * retired when they are not: none at all without requests.
 *
 * - A request has a place at once where there is one; else it waits, first come, first served.
 * - For those who wait beyond what is on its way, children are started: in shared mode one for each
 *   `concurrency` of them, so that demand of n requests at once has ceil(n / concurrency) children.
 * - In shared mode a child is retired when there are more than demand needed within the last `idleMs`,
 *   the oldest first. In any `idleMs` there are thus no more forks than demand needed children at its
 *   peak in that time, beside those that take the place of children that died, failed or are served out.
 * - Children are forked ahead of need by `AheadRule`, after answers, and given to whoever needs one next.
 * - While others wait for room on the host, a child that nobody has used, or that falls idle, gives way to
 *   them, unless it is a session's.
 * - In every mode a request has one child forked at most, beside those that failed it or were gone
 *   before it had its place, and one that is forked ahead when it is answered.
 */
export class RequestRouter<C extends ChildLike> implements AsyncDisposable {
  readonly #rules: IsolationRules;
  readonly #options: { maxChildren: number; maxQueue: number; queueMs: number; attempts: number };
  readonly #clock: Clock;
  readonly #after: After;
  readonly #ahead: AheadRule;
  readonly #queue = new WaitQueue<Waiter<C>>();
  readonly #fleet: Fleet<C>;
  readonly #scaler: Scaler<C>;
  readonly #counters: Counters = newCounters();
  readonly #serviceTime = new ServiceTime();
  #arrivals = 0;
  #closed = false;

  /** @throws FlurryError BAD_ARGUMENT */
  constructor(options: RequestRouterOptions<C>) {
    const { ports, isolation, maxChildren = 100, maxQueue = 1000, queueMs = 10_000, attempts = 3 } = options;
    const { clock = systemClock, after = systemAfter } = options;
    requireCount("maxChildren", maxChildren);
    requireCount("maxQueue", maxQueue);
    requireCount("attempts", attempts);
    requirePositive("queueMs", queueMs);
    this.#options = { maxChildren, maxQueue, queueMs, attempts };
    this.#rules = rulesOf(isolation);
    this.#clock = clock;
    this.#after = after;
    this.#ahead = new AheadRule(options.ahead ?? 0);
    this.#fleet = new Fleet({
      ports,
      rules: this.#rules,
      max: maxChildren,
      clock,
      counters: this.#counters,
      onChange: () => this.#changed(),
    });
    this.#scaler = new Scaler({
      ...{ fleet: this.#fleet, queue: this.#queue, rules: this.#rules, after, maxChildren },
      ahead: this.#ahead,
      isRoomWanted: () => ports.isRoomWanted?.() ?? false,
      onTimer: () => this.#update(),
    });
    this.#update();
  }

  /**
   * Has a request served by a child: calls `work` with one as soon as there is a place.
   *
   * `work` settles when the answer has been read to its end: until then the request has its place in
   * the child, also when its caller has left, so it must end when its signal fires. It rejects only
   * when the child cannot be trusted any more, which is then retired (after its caller has left, only
   * with WORKER_TIMEOUT: the child is not through with it); an answer that tells of an error is an
   * answer. It may be called again with another child if the first one died before
   * `started()`, up to `attempts` times.
   *
   * @throws FlurryError QUEUE_FULL (with `retryAfterSeconds`) when too many wait already, or when no
   * child was free in time; CHILD_DIED when the child died with the request in it; ADMISSION_REFUSED;
   * the error of the last fork; ABORTED, SHUTTING_DOWN, BAD_ARGUMENT; whatever `work` throws
   */
  async serve<T>(work: RequestWork<C, T>, { session, signal }: ServeOptions = {}): Promise<T> {
    throwIfAborted(signal);
    const waiter = this.#arrive(session);
    for (;;) {
      const attempt = await this.#placeFor(waiter, signal);
      try {
        return await this.#attempt(attempt, work, signal);
      } catch (error) {
        if (!this.#isDeath(attempt, error)) throw error;
        const now = this.#clock.monotonic();
        waiter.failures += 1;
        const again = !attempt.started && waiter.failures < this.#options.attempts && now < waiter.deadline;
        if (!again || this.#closed || signal?.aborted) throw deathOf(attempt, error);
        this.#counters.rerouted += 1;
        waiter.again();
      }
    }
  }

  /**
   * As `Scaler.giveWay`.
   *
   * @returns whether there is room soon
   */
  giveWay(options: { unusedOnly?: boolean } = {}): boolean {
    return !this.#closed && this.#scaler.giveWay(options);
  }

  /** Forks no more children ahead of need, and ends those that nobody has used. */
  stopAhead(): void {
    if (!this.#closed) this.#scaler.stopAhead();
  }

  stats(): RouterStats {
    const { retired, waits, ...counters } = this.#counters;
    return {
      ...counters,
      inFlight: this.#fleet.load,
      queued: this.#queue.size,
      children: this.#fleet.counts,
      retired: { ...retired },
      waits: { ...waits, classes: waits.classes.map((one) => ({ ...one })) },
    };
  }

  /** Turns away who waits, and ends all children with the requests in them: these get SHUTTING_DOWN. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#scaler[Symbol.dispose]();
    for (const waiter of this.#queue.all()) this.#turnAway(waiter, shuttingDown());
    await this.#fleet[Symbol.asyncDispose]();
  }

  #arrive(session: string | undefined): Waiter<C> {
    if (this.#closed) throw shuttingDown();
    const { mode } = this.#rules;
    if (mode === "session" && !session)
      throw new FlurryError("BAD_ARGUMENT", "A request needs a session key");
    const key = mode === "session" ? session! : "";
    const now = this.#clock.monotonic();
    const { maxQueue, queueMs } = this.#options;
    // Nobody else waits for a place that is free, so that whoever finds one overtakes nobody.
    if (this.#queue.size >= maxQueue && !this.#scaler.placeFor(key, now)) {
      this.#counters.refused += 1;
      throw this.#refusal(`${this.#queue.size} requests wait for a child, and no more may`);
    }
    const arrival = { number: this.#arrivals++, key, arrivedAt: now, deadline: now + queueMs };
    return new Waiter(arrival, (waiter, error) => this.#startFailed(waiter, error));
  }

  async #placeFor(waiter: Waiter<C>, signal: AbortSignal | undefined): Promise<Attempt<C>> {
    const onAbort = () => {
      if (!this.#turnAway(waiter, abortError(signal))) return;
      this.#update();
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    this.#queue.add(waiter);
    this.#update();
    try {
      return await waiter.place;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  async #attempt<T>(attempt: Attempt<C>, work: RequestWork<C, T>, signal?: AbortSignal): Promise<T> {
    let left = false;
    const onAbort = () => {
      left = true;
      const error = abortError(signal);
      attempt.cut(error);
      // Nobody else is in it, and what it still does is for nobody.
      if (this.#rules.mode === "request") this.#fleet.kill(attempt.on, "served", error);
    };
    // It may have happened since the place was given.
    if (signal?.aborted) onAbort();
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      const answer = await attempt.run(work, {
        onAnswered: () => this.#answered(attempt),
        onEnd: (failure) => this.#ended(attempt, left, failure),
      });
      this.#counters.answered += 1;
      return answer;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  #answered({ on: child }: Attempt<C>): void {
    if (child.hasAnswered) return;
    child.hasAnswered = true;
    this.#ahead.answered(this.#clock.monotonic());
    // Not before the answer is on its way.
    this.#after(0, () => this.#changed());
  }

  /** The work on a request has ended, maybe long after its caller has left. */
  #ended(attempt: Attempt<C>, left: boolean, failure: { error: unknown } | undefined): void {
    const { on: child, beganAt } = attempt;
    if (!failure) {
      const { forkedAt, readyAt } = child.birth;
      const startMs = this.#rules.mode === "request" ? readyAt - forkedAt : 0;
      this.#serviceTime.record(this.#clock.monotonic() - beganAt + startMs);
    } else if (DEATHS.has(codeOf(failure.error))) {
      this.#fleet.kill(child, "died", deathOf(attempt, failure.error));
    } else if (!left || codeOf(failure.error) === "WORKER_TIMEOUT") {
      this.#fleet.retire(child, "error");
    }
    this.#fleet.release(attempt);
  }

  #isDeath(attempt: Attempt<C>, error: unknown): boolean {
    return attempt.on.retired === "died" && DEATHS.has(codeOf(error));
  }

  #startFailed(waiter: Waiter<C>, error: unknown): void {
    waiter.failures += 1;
    const isOver = FINAL.has(codeOf(error)) || waiter.failures >= this.#options.attempts;
    if (isOver) this.#turnAway(waiter, error);
  }

  /** Has a waiter leave with an error. Returns false if it does not wait any more. */
  #turnAway(waiter: Waiter<C>, error: unknown): boolean {
    if (!this.#queue.delete(waiter)) return false;
    waiter.cover?.drop(waiter);
    waiter.reject(error);
    return true;
  }

  #refusal(message: string): FlurryError {
    const places = this.#options.maxChildren * this.#rules.concurrency;
    const retryAfterSeconds = this.#serviceTime.retryAfterSeconds(this.#queue.size, places);
    const hint = `try again in ${retryAfterSeconds} s`;
    return new FlurryError("QUEUE_FULL", message, { hint, retryAfterSeconds });
  }

  /** Does whatever has become due or possible. */
  #update(): void {
    if (this.#closed) return;
    const now = this.#clock.monotonic();
    for (const waiter of this.#queue.due(now)) {
      this.#counters.expired += 1;
      const error = this.#refusal(`No child was free within ${this.#options.queueMs} ms`);
      this.#turnAway(waiter, error);
    }
    this.#scaler.prepare(now);
    this.#match(now);
    this.#scaler.scale(now);
  }

  /** The same after something has ended or become ready: there may be time for a child ahead of need, too. */
  #changed(): void {
    this.#update();
    if (!this.#closed) this.#scaler.forkAhead(this.#clock.monotonic());
  }

  #match(now: number): void {
    for (const waiter of this.#queue.all()) {
      const child = this.#scaler.placeFor(waiter.key, now);
      if (child) {
        this.#queue.delete(waiter);
        waiter.cover?.drop(waiter);
        if (!waiter.served) countWait(this.#counters.waits, now - waiter.arrivedAt);
        waiter.served = true;
        if (child.given === 0) this.#ahead.taken(now);
        waiter.resolve(this.#fleet.give(child, waiter.key));
      } else if (this.#rules.mode !== "session") return;
    }
  }
}

function shuttingDown(): FlurryError {
  return new FlurryError("SHUTTING_DOWN", "The worker is being shut down");
}

function deathOf(attempt: Attempt<ChildLike>, error: unknown): FlurryError {
  if (error instanceof FlurryError && error.code === "CHILD_DIED") return error;
  const message = `${attempt.on.child.id} died with the request in it`;
  return new FlurryError("CHILD_DIED", message, { cause: error });
}
