import { getLogger } from "@logtape/logtape";
import { FlurryError } from "../../errors/errors.ts";
import { isModule, type ScheduledRun } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import { classOf, failureOf } from "../jobs/next-step.ts";
import type { Store, StoredWorker } from "../jobs/ports.ts";
import type { After } from "../jobs/timer.ts";
import type { ScheduledEnd } from "../workers/js/js-scheduled.ts";
import type { WorkerRequests, WorkerTriggers } from "./context.ts";
import { CronTimer } from "./cron-timer.ts";
import type { GatewayMetrics } from "./metrics.ts";
import type { WorkerHosts } from "./worker-hosts.ts";
import { servedVersion } from "./worker-requests.ts";

/** Workers that are read from the store at a time: each may have megabytes of code. */
const STEP = 10;
/** Milliseconds until what could not be called, or read, is tried once more. */
const AGAIN_MS = 5000;
/** Only what failed within this time from when it was due is tried once more. */
const SOON_MS = 50_000;
const logger = getLogger(["flurry", "schedules"]);

export interface SchedulesOptions {
  store: Pick<Store, "workers" | "secrets" | "keys">;
  hosts: Pick<WorkerHosts, "worker" | "onChange">;
  /** What calls workers; without it nothing is called. */
  requests: Pick<WorkerRequests, "scheduled" | "logs"> | undefined;
  metrics: Pick<GatewayMetrics, "scheduledEnded">;
  clock: Clock;
  after: After;
  /** Longest time of one call, in ms. */
  timeoutMs: number;
  /** How long calls may go on when the gateway ends. @default 0 */
  drainMs?: number | undefined;
  /** Aborted when the gateway ends: nothing more is called then. */
  ending: AbortSignal;
}

/**
 * Calls `scheduled()` of JS workers at the times of their crons: of each worker's current version, and of
 * each cron one call at a time. While one goes on the next times are skipped, and those at which no gateway
 * ran are not made up for.
 */
export class Schedules implements AsyncDisposable, WorkerTriggers {
  readonly #options: SchedulesOptions;
  readonly #timer: CronTimer;
  readonly #changes: Disposable;
  /** Calls that the clock has asked for, by worker and cron. */
  readonly #calls = new Map<string, Promise<void>>();
  readonly #waits = new Set<Disposable>();
  readonly #stop = new AbortController();
  /** Reads of workers, one after the other. */
  #reading: Promise<void> = Promise.resolve();
  /** When calls are to end; monotonic. */
  #endAt: number | undefined;

  constructor(options: SchedulesOptions) {
    const { clock, after, hosts, ending } = options;
    this.#options = options;
    this.#timer = new CronTimer({
      ...{ clock, after },
      onDue: (worker, cron, time) => this.#begin(worker, cron, time),
      onMissed: (worker, cron, time) => this.#tell("missed", worker, cron, time, "the gateway did not run"),
    });
    this.#changes = hosts.onChange((name) => this.#read(() => this.#readOne(name)));
    ending.addEventListener("abort", () => this.#end(), { once: true });
  }

  /** Reads in the background what there is to call. */
  start(): void {
    this.#read(() => this.#readAll());
  }

  /**
   * Calls it now, whatever else goes on.
   *
   * @param cron - what the event says. @default the worker's first one; "" if it has none
   * @throws FlurryError WORKER_NOT_FOUND, and as `runScheduled`
   */
  async trigger(name: string, cron: string | undefined, signal: AbortSignal): Promise<ScheduledRun> {
    const { hosts, clock, ending } = this.#options;
    const worker = await hosts.worker(name);
    if (!worker || !isModule(worker.spec) || !this.#options.requests) {
      throw new FlurryError("WORKER_NOT_FOUND", `There is no worker "${name}" that is a module`);
    }
    const event = { cron: cron ?? worker.spec.crons?.[0] ?? "", time: clock.now() };
    const { vm, ms, error } = await this.#call(worker, event, AbortSignal.any([signal, ending]));
    const { version } = worker;
    const scheduledTime = new Date(event.time).toISOString();
    const outcome = error ? ("failed" as const) : ("succeeded" as const);
    return { name, version, cron: event.cron, scheduledTime, vm, ms, outcome, ...(error && { error }) };
  }

  /** Lets calls go on for what is left of `drainMs` since the gateway has begun to end, and aborts them. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#end();
    await this.#drained(this.#endAt! - this.#options.clock.monotonic());
    this.#stop.abort();
    await Promise.all(this.#calls.values());
    await this.#reading;
  }

  async #drained(ms: number): Promise<void> {
    if (ms <= 0 || this.#calls.size === 0) return;
    const late = Promise.withResolvers<void>();
    using _late = this.#options.after(ms, late.resolve);
    await Promise.race([Promise.all(this.#calls.values()), late.promise]);
  }

  #end(): void {
    const { clock, drainMs = 0 } = this.#options;
    this.#endAt ??= clock.monotonic() + drainMs;
    this.#changes[Symbol.dispose]();
    this.#timer[Symbol.dispose]();
    for (const wait of this.#waits) wait[Symbol.dispose]();
  }

  get #isEnding(): boolean {
    return this.#endAt !== undefined;
  }

  #begin(name: string, cron: string, time: number): void {
    const key = `${name} ${cron}`;
    if (this.#calls.has(key)) {
      this.#tell("skipped", name, cron, time, "the call before has not ended");
      return;
    }
    const call = this.#run(name, cron, time).finally(() => this.#calls.delete(key));
    this.#calls.set(key, call);
  }

  /** Calls it, and once more a while later if it could not be called for no fault of the worker's. */
  async #run(name: string, cron: string, time: number): Promise<void> {
    const { clock } = this.#options;
    const began = clock.monotonic();
    for (let isFirst = true; ; isFirst = false) {
      try {
        await this.#callCurrent(name, cron, time);
        return;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        const { code, message } = failureOf(error);
        const isOurs = classOf(code) === "infrastructure";
        const isSoon = clock.monotonic() - began < SOON_MS;
        if (isOurs && isFirst && isSoon && (await this.#later())) continue;
        this.#tell(isOurs ? "infrastructure" : "failed", name, cron, time, `${message} (${code})`);
        return;
      }
    }
  }

  async #callCurrent(name: string, cron: string, time: number): Promise<void> {
    const worker = await this.#options.hosts.worker(name);
    // It may have changed a moment ago.
    if (!worker || !isModule(worker.spec) || !worker.spec.crons?.includes(cron)) return;
    await this.#call(worker, { cron, time }, this.#stop.signal);
  }

  async #call(
    worker: StoredWorker,
    event: { cron: string; time: number },
    signal: AbortSignal,
  ): Promise<ScheduledEnd> {
    const { requests, timeoutMs, store, metrics } = this.#options;
    if (!requests) throw new FlurryError("INTERNAL", "Nothing calls workers here");
    const end = await requests.scheduled(servedVersion({ store }, worker), event, { timeoutMs, signal });
    const { error } = end;
    if (error) this.#tell("failed", worker.name, event.cron, event.time, `${error.message} (${error.code})`);
    else metrics.scheduledEnded("succeeded");
    return end;
  }

  /** Tells operators and who looks at the worker's log of what was not, or not well, done. */
  #tell(
    outcome: "failed" | "infrastructure" | "skipped" | "missed",
    worker: string,
    cron: string,
    time: number,
    reason: string,
  ): void {
    const at = new Date(time).toISOString();
    this.#options.metrics.scheduledEnded(outcome);
    logger.warn("scheduled() of {worker} for {cron} at {at}: {outcome}: {reason}", {
      ...{ worker, cron, at, outcome, reason },
    });
    const what = outcome === "infrastructure" ? "failed" : outcome;
    const text = `scheduled() for "${cron}" at ${at} ${what}: ${reason}`;
    const level = what === "failed" ? "error" : "warn";
    this.#options.requests?.logs.note(worker, { vm: "", level, text });
  }

  #read(read: () => Promise<void>): void {
    if (!this.#options.requests) return;
    this.#reading = this.#reading.then(async () => {
      while (!this.#isEnding) {
        try {
          await read();
          return;
        } catch (error) {
          logger.error("Cannot read the crons of workers: {error}", { error });
          await this.#later();
        }
      }
    });
  }

  async #readAll(): Promise<void> {
    let cursor: string | undefined;
    do {
      const page = await this.#options.store.workers.list({ cursor, limit: STEP });
      for (const worker of page.items) this.#set(worker.name, worker);
      cursor = page.next;
    } while (cursor !== undefined && !this.#isEnding);
  }

  async #readOne(name: string): Promise<void> {
    this.#set(name, await this.#options.hosts.worker(name));
  }

  #set(name: string, worker: StoredWorker | undefined): void {
    this.#timer.set(name, worker && isModule(worker.spec) ? (worker.spec.crons ?? []) : []);
  }

  /** Waits a while. False when the gateway ends first. */
  async #later(): Promise<boolean> {
    if (this.#isEnding) return false;
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = this.#options.after(AGAIN_MS, resolve);
    const wait = {
      [Symbol.dispose]: () => {
        timer[Symbol.dispose]();
        resolve();
      },
    };
    this.#waits.add(wait);
    await promise;
    this.#waits.delete(wait);
    return !this.#isEnding;
  }
}
