import { FlurryError } from "../../../errors/errors.ts";
import type { Clock } from "../../clock.ts";
import { Attempt } from "./attempt.ts";
import { ChildStart } from "./child-start.ts";
import type { IsolationRules } from "./isolation.ts";
import type { ChildLike, Place, ScalingPorts } from "./ports.ts";
import type { ChildCounts, Counters } from "./router-stats.ts";
import { type RetireReason, ServingChild } from "./serving-child.ts";

export interface FleetOptions<C extends ChildLike> {
  ports: Pick<ScalingPorts<C>, "fork" | "admit" | "admitAhead">;
  rules: IsolationRules;
  /** Children at most, from the moment they wait for admission until they are gone. */
  max: number;
  clock: Clock;
  counters: Counters;
  /** There may be a place, or room for a child, that there was not before. */
  onChange: () => void;
}

/** The children of a router: starts them, hands them out, and ends each of them once. */
export class Fleet<C extends ChildLike> implements AsyncDisposable {
  /** Children on their way, the earliest first. */
  readonly starts = new Set<ChildStart>();
  /** Children that take requests, the oldest first. */
  readonly open = new Set<ServingChild<C>>();
  /** Children that are ready, and that nobody has used yet, the oldest first: they belong to no session. */
  readonly spares = new Set<ServingChild<C>>();
  readonly #options: FleetOptions<C>;
  readonly #sessions = new Map<string, ServingChild<C>>();
  /** Take no more requests, and finish those that they have. */
  readonly #draining = new Set<ServingChild<C>>();
  readonly #ending = new Set<ServingChild<C>>();
  /** Starts and ends under way. */
  readonly #running = new Set<Promise<void>>();
  #closed: FlurryError | undefined;
  #endError: { error: unknown } | undefined;

  constructor(options: FleetOptions<C>) {
    this.#options = options;
  }

  /** Whether one more child may be started. */
  get hasRoom(): boolean {
    const { starts, open, spares } = this;
    const ready = open.size + spares.size;
    return starts.size + ready + this.#draining.size + this.#ending.size < this.#options.max;
  }

  /** Whether room comes: a child is being ended. */
  get isEnding(): boolean {
    return this.#ending.size > 0;
  }

  /** Requests in children that take more. */
  get openLoad(): number {
    return loadOf(this.open);
  }

  /** Requests in all children. */
  get load(): number {
    return loadOf(this.open) + loadOf(this.#draining) + loadOf(this.#ending);
  }

  get counts(): ChildCounts {
    const idle = [...this.open].filter(({ load }) => load === 0).length;
    const forking = [...this.starts].filter(({ phase }) => phase === "forking").length;
    // A child of one request is not open for more, but does what it is there for.
    const [busy, draining] =
      this.#options.rules.mode === "request" ? [this.#draining.size, 0] : [0, this.#draining.size];
    return {
      admitting: this.starts.size - forking,
      forking,
      spare: this.spares.size,
      idle,
      busy: this.open.size - idle + busy,
      draining,
      ending: this.#ending.size,
    };
  }

  /** The child that takes a session's requests. */
  ofSession(key: string): ServingChild<C> | undefined {
    return this.#sessions.get(key);
  }

  /** Begins a child. */
  start(key: string): ChildStart {
    return this.#begin(new ChildStart(key));
  }

  /** Begins a child that nobody needs yet. Returns false if there is no room for it. */
  startAhead(): boolean {
    const ticket = this.#options.ports.admitAhead();
    if (!ticket) return false;
    this.#begin(new ChildStart("", true), ticket);
    return true;
  }

  /** Puts a request of a session into a child. It leaves with `release`. */
  give(child: ServingChild<C>, key: string): Attempt<C> {
    const { rules, clock, counters } = this.#options;
    if (this.spares.delete(child)) this.#open(child, key);
    if (child.given === 0 && child.birth.isAhead) counters.usedAhead += 1;
    const attempt = new Attempt(child, clock.monotonic());
    child.occupants.add(attempt);
    child.ticket.resume?.();
    child.given += 1;
    if (child.given >= rules.maxRequests) this.retire(child, "served");
    return attempt;
  }

  /** Takes a request out of its child. */
  release(attempt: Attempt<C>): void {
    const { on: child } = attempt;
    child.occupants.delete(attempt);
    child.idleSince = this.#options.clock.monotonic();
    // A session may be away for long, and keeps its child meanwhile.
    if (child.load === 0 && this.#options.rules.mode === "session") child.ticket.rest?.();
    if (child.retired && child.load === 0) this.#end(child);
    this.#options.onChange();
  }

  /** Gives a child no more requests, and ends it after those that it has. */
  retire(child: ServingChild<C>, reason: RetireReason): void {
    if (child.ending) return;
    child.retired = reason;
    this.open.delete(child);
    this.spares.delete(child);
    const { key } = child.birth;
    if (this.#sessions.get(key) === child) this.#sessions.delete(key);
    this.#draining.add(child);
    if (child.load === 0) this.#end(child);
  }

  /** Ends a child at once; the requests in it get the error. */
  kill(child: ServingChild<C>, reason: RetireReason, error: FlurryError): void {
    if (child.ending) return;
    this.retire(child, reason);
    // Before it ends, so that they get this error and not whatever its end does to them.
    for (const occupant of [...child.occupants]) occupant.cut(error);
    this.#end(child);
  }

  /**
   * Ends all children and starts, and waits for it.
   *
   * @throws what a child threw while it was disposed, now or earlier
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const reason = new FlurryError("SHUTTING_DOWN", "The worker is being shut down");
    this.#closed = reason;
    for (const start of this.starts) start.abort.abort(reason);
    for (const child of [...this.open, ...this.spares, ...this.#draining]) this.kill(child, "closed", reason);
    while (this.#running.size > 0) await Promise.all(this.#running);
    if (this.#endError) throw this.#endError.error;
  }

  #begin(start: ChildStart, ticket?: Place): ChildStart {
    this.starts.add(start);
    this.#track(this.#run(start, ticket));
    return start;
  }

  async #run(start: ChildStart, given: Place | undefined): Promise<void> {
    const { ports, clock, counters, onChange } = this.#options;
    const { signal } = start.abort;
    let ticket = given;
    let child: C;
    let forkedAt = 0;
    try {
      ticket ??= await ports.admit(signal);
      signal.throwIfAborted();
      forkedAt = clock.monotonic();
      start.phase = "forking";
      counters.forks += 1;
      if (start.isAhead) counters.forksAhead += 1;
      child = await ports.fork(signal, start.isAhead);
    } catch (error) {
      ticket?.[Symbol.dispose]();
      if (ticket && !signal.aborted) counters.failedForks += 1;
      this.starts.delete(start);
      for (const waiter of start.uncover()) waiter.startFailed(error);
      onChange();
      return;
    }
    this.starts.delete(start);
    const { key, isAhead } = start;
    const isWanted = start.uncover().length > 0;
    const birth = { key: "", isAhead, forkedAt, readyAt: clock.monotonic() };
    this.#join(new ServingChild(child, ticket, birth), key, isWanted);
    onChange();
  }

  #join(child: ServingChild<C>, key: string, isWanted: boolean): void {
    const { id, exited } = child.child;
    // One request's child belongs to nobody before it has that request. A session may have found another.
    const isSpare = this.#options.rules.mode === "request" || !isWanted || this.#sessions.has(key);
    if (isSpare) this.spares.add(child);
    else this.#open(child, key);
    const died = (why?: unknown) => {
      if (child.ending) return;
      const known = why instanceof FlurryError && why.code === "CHILD_DIED" ? why : undefined;
      const error = known ?? new FlurryError("CHILD_DIED", `${id} died with the request in it`);
      this.kill(child, "died", error);
      this.#options.onChange();
    };
    exited.then(died, died);
    // It was ready in the moment in which all were ended.
    if (this.#closed) this.kill(child, "closed", this.#closed);
  }

  #open(child: ServingChild<C>, key: string): void {
    child.birth.key = key;
    this.open.add(child);
    if (this.#options.rules.mode === "session") this.#sessions.set(key, child);
  }

  #end(child: ServingChild<C>): void {
    if (child.ending) return;
    child.ending = true;
    const { counters } = this.#options;
    counters.retired[child.retired ?? "closed"] += 1;
    if (child.given === 0) counters.unused += 1;
    this.#draining.delete(child);
    this.#ending.add(child);
    this.#track(this.#dispose(child));
  }

  async #dispose(child: ServingChild<C>): Promise<void> {
    try {
      await child.child[Symbol.asyncDispose]();
    } catch (error) {
      // Its place is given back all the same, else such failures would bring the router to a stand.
      this.#endError ??= { error };
    }
    child.ticket[Symbol.dispose]();
    this.#ending.delete(child);
    this.#options.onChange();
  }

  #track(work: Promise<void>): void {
    this.#running.add(work);
    void work.finally(() => this.#running.delete(work));
  }
}

function loadOf(children: Iterable<ServingChild<ChildLike>>): number {
  let load = 0;
  for (const child of children) load += child.load;
  return load;
}
