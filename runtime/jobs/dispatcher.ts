import { getLogger } from "@logtape/logtape";
import type { SetAside } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import { AbandonedAttempts } from "./abandoned.ts";
import { CancelWatch } from "./cancel-watch.ts";
import { ClaimLoop } from "./claim-loop.ts";
import { HostRecord } from "./host-record.ts";
import { LeaseKeeper } from "./lease-keeper.ts";
import { type AttemptHost, LiveAttempt } from "./live-attempt.ts";
import { LiveSet } from "./live-set.ts";
import type { DispatchObserver } from "./observer.ts";
import { Owners } from "./owners.ts";
import type { Claim, Lane, Readiness, Store, StoredJob } from "./ports.ts";
import { Preparing } from "./preparing.ts";
import { Rate } from "./rate.ts";
import { Recorder } from "./recorder.ts";
import { type SetAsideChange, SetAsides } from "./set-aside.ts";
import { Slots } from "./slots.ts";
import type { TaskRuntime } from "./task-runtime.ts";
import { type After, systemAfter } from "./timer.ts";
import { whyWaiting } from "./waiting.ts";
import { Wake } from "./wake.ts";
import { type SpecSource, WarmUps } from "./warm-ups.ts";

const DEFAULT_LEASE_MS = 30_000;
const logger = getLogger(["flurry", "jobs"]);

export interface DispatcherOptions {
  store: Store;
  runtime: TaskRuntime;
  clock: Clock;
  observer?: DispatchObserver | undefined;
  /** @default the runtime's name */
  hostId?: string | undefined;
  /** How long a lease on a task lasts; it is renewed at a third of that. @default 30000 */
  leaseMs?: number | undefined;
  /** How long running tasks may go on when the dispatcher ends. @default 0 */
  drainMs?: number | undefined;
  /** From 0 to below 1. @default Math.random */
  random?: (() => number) | undefined;
  /** @default setTimeout */
  after?: After | undefined;
}

/** Takes tasks from the queue, runs them on this host, and records how they end. */
export class Dispatcher implements AsyncDisposable {
  readonly #options: DispatcherOptions;
  readonly #hostId: string;
  readonly #after: After;
  readonly #wake = new Wake();
  readonly #live = new LiveSet();
  readonly #lives = new Set<Promise<void>>();
  readonly #preparing = new Preparing();
  readonly #rate: Rate;
  readonly #owners: Owners;
  readonly #asides: SetAsides;
  readonly #slots: Slots;
  readonly #keeper: LeaseKeeper;
  readonly #recorder: Recorder;
  readonly #record: HostRecord;
  readonly #warmUps: WarmUps;
  readonly #cancels: CancelWatch;
  readonly #abandoned: AbandonedAttempts;
  readonly #host: AttemptHost;
  readonly #claims: ClaimLoop;
  readonly #readinessListeners = new Set<(family: string) => void>();
  readonly #readiness: Disposable;
  #ending = false;

  constructor(options: DispatcherOptions) {
    const { store, runtime, clock } = options;
    this.#options = options;
    this.#hostId = options.hostId ?? runtime.name;
    this.#after = options.after ?? systemAfter;
    const after = this.#after;
    this.#rate = new Rate(clock);
    this.#owners = new Owners(store.keys);
    this.#slots = new Slots(
      () => runtime.slots,
      () => this.#wake.notify(),
    );
    this.#asides = new SetAsides({
      clock,
      host: { id: this.#hostId, label: runtime.name },
      onChange: (change) => this.#tellSetAside(change),
    });
    this.#keeper = new LeaseKeeper({
      queue: store.queue,
      leaseMs: options.leaseMs ?? DEFAULT_LEASE_MS,
      after,
      onLost: (token) => this.#live.get(token)?.lose(),
      onError: (error) => logger.warn("Cannot renew leases: {error}", { error }),
    });
    this.#recorder = new Recorder({
      queue: store.queue,
      clock,
      after,
      onTrouble: (code, message, waitMs) => this.#asides.hostFailed(code, message, waitMs),
      onRelief: () => {
        this.#asides.hostWorked();
        this.#wake.notify();
      },
    });
    this.#record = new HostRecord({
      hosts: store.hosts,
      id: this.#hostId,
      runtime,
      after,
      running: () => this.running,
      onBeat: () => this.#recorder.worked(),
    });
    const readinessChanged = (family: string) => this.#readinessChanged(family);
    this.#readiness = runtime.onReadiness(readinessChanged);
    this.#warmUps = new WarmUps(runtime, readinessChanged);
    this.#abandoned = new AbandonedAttempts(store);
    this.#cancels = new CancelWatch({
      jobs: store.jobs,
      after,
      runsHere: (job) => this.#live.hasJob(job),
      onCancel: (job, reason) => {
        for (const attempt of this.#live.ofJob(job)) attempt.stop("canceled", reason);
      },
    });
    this.#host = {
      ...{ store, runtime, clock, after },
      ...{ random: options.random ?? Math.random, recorder: this.#recorder, slots: this.#slots },
      preparing: this.#preparing,
      tell: (tellOne) => this.#tell(tellOne),
      changed: () => this.#wake.notify(),
    };
    this.#claims = new ClaimLoop({
      queue: store.queue,
      after,
      wake: this.#wake,
      ...{ hostId: this.#hostId, leaseMs: options.leaseMs ?? DEFAULT_LEASE_MS },
      ...{ slots: this.#slots, preparing: this.#preparing, owners: this.#owners, asides: this.#asides },
      ...{ recorder: this.#recorder, keeper: this.#keeper, record: this.#record },
      begin: (claim, lane, slot) => this.#begin(claim, lane, slot),
      onLost: (token) => this.#live.get(token)?.lose(),
    });
  }

  /**
   * Registers the host, removes what a killed gateway left of its attempts, and begins to take tasks.
   *
   * @throws whatever the store throws
   */
  async start(): Promise<void> {
    await this.#record.start();
    await this.#abandoned.sweep();
    this.#claims.start();
  }

  /**
   * State of a family's parent, or why it has been set aside. Of one that waits to be made ready, not how
   * that went the last time.
   */
  readiness(family: string): Readiness {
    const own = this.#options.runtime.readiness(family);
    const turn = this.#warmUps.stateOf(family);
    if (turn !== undefined && (own.state === "cold" || own.state === "failed")) {
      return { state: "preparing", ...(turn === "later" && { step: "waiting for other preparations" }) };
    }
    const aside = this.#asides.list().find(({ kind, id }) => kind === "worker" && id === family);
    if (!aside) return own;
    return { state: "failed", error: { code: "INFRASTRUCTURE_FAILED", message: aside.reason } };
  }

  /** Calls back after each change of a family's readiness. */
  onReadiness(listener: (family: string) => void): Disposable {
    this.#readinessListeners.add(listener);
    return { [Symbol.dispose]: () => void this.#readinessListeners.delete(listener) };
  }

  /** Why no task of a job runs now, for people; undefined when one does, or when none is left to run. */
  waiting(stored: StoredJob): string | undefined {
    const { runtime } = this.#options;
    const { job, family, owner } = stored;
    return whyWaiting(stored, {
      held: [...this.#live.ofJob(job.id)].map(({ waitsFor }) => waitsFor),
      asides: this.#asides.list(),
      ownerIsFull: this.#owners.blocked().has(owner),
      readiness: runtime.readiness(family),
      isPrepared: this.#preparing.has(family),
      waitsForTurn: this.#preparing.waits(family),
      places: { free: this.#slots.free, total: runtime.slots },
    });
  }

  /** Makes the parent of a family ready in the background: a help for its first task, not a promise. */
  prepare(family: string, spec: SpecSource): void {
    if (!this.#ending) this.#warmUps.add(family, spec);
  }

  /** What is not used for the time being, and why. */
  setAside(): SetAside[] {
    return this.#asides.list();
  }

  /** Tasks that run here now. */
  get running(): number {
    return this.#slots.used;
  }

  /** Tasks that have ended here in a second, over the last minute or so. */
  get endedPerSecond(): number {
    return this.#rate.perSecond;
  }

  /**
   * Takes no more tasks, gives `drainMs` to those that run, then aborts them: they go back to the queue and
   * their attempt does not count.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    const { drainMs = 0 } = this.#options;
    this.#ending = true;
    await this.#claims[Symbol.asyncDispose]();
    for (const attempt of this.#live) {
      if (!attempt.runs) attempt.stop("shutdown", "The gateway ends");
    }
    await this.#drained(drainMs);
    for (const attempt of this.#live) {
      attempt.stop("shutdown", "The gateway ends");
      attempt.giveUp();
    }
    await Promise.all(this.#lives);
    this.#cancels[Symbol.dispose]();
    this.#readiness[Symbol.dispose]();
    await Promise.all([
      this.#warmUps[Symbol.asyncDispose](),
      this.#keeper[Symbol.asyncDispose](),
      this.#record[Symbol.asyncDispose](),
      this.#abandoned[Symbol.asyncDispose](),
    ]);
  }

  async #drained(ms: number): Promise<void> {
    if (ms <= 0 || this.#lives.size === 0) return;
    const late = Promise.withResolvers<void>();
    using _timer = this.#after(ms, late.resolve);
    await Promise.race([Promise.all(this.#lives), late.promise]);
  }

  /** Begins an attempt. Whether more of its family may be claimed now. */
  async #begin(claim: Claim, { priority }: Lane, slot: Disposable): Promise<boolean> {
    const { queue } = this.#options.store;
    const { family, owner, token, waitedMs } = claim;
    const isReady = this.#options.runtime.readiness(family).state === "ready";
    // It gets another one when its parent is ready.
    if (!isReady) slot[Symbol.dispose]();
    if (!isReady && !this.#preparing.begin(family)) {
      const reason = "Other workers are made ready first";
      await queue.finish(token, { state: "queued", reason, delayMs: 0 });
      return false;
    }
    this.#tell((observer) => observer.claimed?.({ family, priority, waitedMs }));
    const trial = this.#asides.begin(family, labelOf(claim));
    const attempt = new LiveAttempt(this.#host, claim, trial, isReady ? slot : undefined);
    this.#owners.begin(owner);
    this.#live.add(attempt);
    this.#keeper.add(token);
    const life = this.#liveOut(attempt);
    this.#lives.add(life);
    void life.finally(() => this.#lives.delete(life));
    // It may have been canceled while it was being claimed.
    this.#cancels.look(claim.job);
    await this.#owners.look(owner);
    return isReady && !this.#asides.blockedFamilies().includes(family);
  }

  async #liveOut(attempt: LiveAttempt): Promise<void> {
    const { owner, token } = attempt.claim;
    try {
      await attempt.run();
    } catch (error) {
      // Its lease runs out, and the task is taken up again.
      logger.error("An attempt ended without a record: {error}", { error });
    } finally {
      this.#live.remove(attempt);
      this.#owners.end(owner);
      this.#keeper.remove(token);
      this.#rate.count();
      this.#wake.notify();
    }
  }

  #readinessChanged(family: string): void {
    for (const listener of this.#readinessListeners) listener(family);
  }

  #tellSetAside(change: SetAsideChange): void {
    this.#record.tell(change);
    this.#wake.notify();
    this.#readinessChanged(change.change === "set aside" ? change.entry.id : change.id);
    if (change.change === "set aside") {
      const { kind, label, reason, failures } = change.entry;
      logger.warn("Set {kind} {label} aside: {reason}", { kind, label, reason, failures });
      this.#tell((observer) => observer.setAside?.(change.entry));
    } else {
      const { kind, id } = change;
      logger.info("Restored {kind} {id}", { kind, id });
      this.#tell((observer) => observer.restored?.({ kind, id }));
    }
  }

  #tell(tellOne: (observer: DispatchObserver) => void): void {
    try {
      if (this.#options.observer) tellOne(this.#options.observer);
    } catch (error) {
      logger.warn("An observer failed: {error}", { error });
    }
  }
}

function labelOf({ worker, spec }: Claim): string {
  return worker
    ? `${worker.name}@${worker.version}`
    : spec.module
      ? spec.module.entry
      : `image ${spec.image}`;
}
