import { getLogger } from "@logtape/logtape";
import { describeError, FlurryError } from "../../../errors/errors.ts";
import type { ModuleSpec, WorkerIsolation } from "../../api/mod.ts";
import { Serving } from "../../api/mod.ts";
import { familyOf } from "../../jobs/family.ts";
import type { AddressGuard } from "../../net/address-guard.ts";
import type { Families } from "../families.ts";
import type { Isolation } from "../scaling/isolation.ts";
import type { ScalingPorts } from "../scaling/ports.ts";
import type { RouterStats } from "../scaling/router-stats.ts";
import { SingleFlight } from "../single-flight.ts";
import { JsChild } from "./js-child.ts";
import { type CronEvent, runScheduled, type ScheduledEnd, type ScheduledOptions } from "./js-scheduled.ts";
import { JsService } from "./js-service.ts";
import { outboundOf } from "./outbound.ts";
import { WorkerLogs } from "./worker-logs.ts";

const logger = getLogger(["flurry", "workers"]);

/** How long requests to an older version may go on when a newer one has taken its place. */
const DRAIN_MS = 60_000;
/** How long a version that could not be made ready is not tried again. */
const RETRY_MS = 5000;

/** A version of a deployed worker. */
export interface ServedVersion {
  name: string;
  version: number;
  spec: ModuleSpec;
  /** Variables that hold secrets, asked for at each fork: they may have changed. */
  secrets: () => Promise<Record<string, string>>;
}

export interface ServeOptions {
  /** The URL that the worker sees. @default the request's */
  url?: string | undefined;
  /** Needed with isolation by session. */
  session?: string | undefined;
}

/** What a service does. */
export interface ServiceStats {
  name: string;
  version: number;
  stats: RouterStats;
}

interface Running {
  version: number;
  service: JsService;
}

/**
 * Answers requests to deployed JS workers: each by the version that it names, as soon as that is ready;
 * until then by the one before, if there is one. A version that has been replaced ends when its requests
 * have.
 */
export class JsServices implements AsyncDisposable {
  /** What the workers print. */
  readonly logs = new WorkerLogs();
  readonly #families: Families;
  readonly #guard: AddressGuard;
  readonly #running = new Map<string, Running>();
  readonly #opening = new SingleFlight();
  /** Versions that could not be made ready: why, and until when. Monotonic. */
  readonly #failed = new Map<string, { version: number; error: unknown; until: number }>();
  readonly #background = new Set<Promise<void>>();
  readonly #waiting: Disposable;
  readonly #stop = new AbortController();

  /** @param guard - says which addresses of what a worker may ask it may have; from `outboundGuard` */
  constructor(families: Families, guard: AddressGuard) {
    this.#families = families;
    this.#guard = guard;
    this.#waiting = families.onWaiting(() => {
      for (const { service } of this.#running.values()) service.giveWay();
    });
  }

  /**
   * @throws FlurryError as `JsService.handle`; WORKER_LOAD_FAILED and what `Families.prepare` throws, when
   * there is no version that can answer
   */
  async handle(worker: ServedVersion, request: Request, options: ServeOptions = {}): Promise<Response> {
    const { service } = await this.#serviceFor(worker, request.signal);
    const { timeoutMs } = worker.spec.http ?? Serving.parse({});
    return await service.handle(request, { ...options, timeoutMs });
  }

  /** Calls a worker's `scheduled()`. @throws FlurryError as `runScheduled`, and what `Families.prepare` throws */
  async scheduled(
    worker: ServedVersion,
    event: CronEvent,
    { timeoutMs, signal }: ScheduledOptions,
  ): Promise<ScheduledEnd> {
    const { name, spec } = worker;
    const family = familyOf(spec);
    const { admit, fork } = this.#portsOf(worker, family);
    const ports = {
      fork,
      admit: async (limit: AbortSignal) => {
        await this.#families.prepare(family, spec, limit);
        return await admit(limit);
      },
    };
    const onFailure = (vm: string, text: string) => this.logs.note(name, { vm, level: "error", text });
    const limits = { timeoutMs, signal: AbortSignal.any([signal, this.#stop.signal]) };
    const running = runScheduled(ports, event, onFailure, limits);
    this.#inBackground(running.then(() => undefined));
    return await running;
  }

  stats(): ServiceStats[] {
    return [...this.#running].map(([name, { version, service }]) => ({
      name,
      version,
      stats: service.stats(),
    }));
  }

  /** A worker has been removed: its service ends when its requests have. */
  remove(name: string): void {
    const running = this.#running.get(name);
    this.#running.delete(name);
    this.logs.remove(name);
    if (running) this.#retire(running);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort(new FlurryError("SHUTTING_DOWN", "The workers are being shut down"));
    this.#waiting[Symbol.dispose]();
    await this.#opening[Symbol.asyncDispose]();
    await Promise.all(this.#background);
    await Promise.all([...this.#running.values()].map(({ service }) => service[Symbol.asyncDispose]()));
    this.#running.clear();
  }

  async #serviceFor(worker: ServedVersion, signal: AbortSignal): Promise<Running> {
    const running = this.#running.get(worker.name);
    if (running?.version === worker.version) return running;
    const failed = this.#failed.get(worker.name);
    const hasFailed = failed?.version === worker.version && performance.now() < failed.until;
    if (running) {
      if (!hasFailed) this.#inBackground(this.#open(worker, this.#stop.signal));
      return running;
    }
    if (hasFailed) throw failed.error;
    await this.#open(worker, signal);
    return this.#running.get(worker.name) ?? (await this.#serviceFor(worker, signal));
  }

  async #open(worker: ServedVersion, signal: AbortSignal): Promise<void> {
    const { name, version } = worker;
    await this.#opening.join(`${name}@${version}`, (stop) => this.#replace(worker, stop), signal);
  }

  /** Makes a version ready, and has it take the place of the one before. */
  async #replace(worker: ServedVersion, signal: AbortSignal): Promise<void> {
    const { name, version, spec } = worker;
    const family = familyOf(spec);
    try {
      await this.#families.prepare(family, spec, signal);
    } catch (error) {
      if (signal.aborted) throw error;
      this.#failed.set(name, { version, error, until: performance.now() + RETRY_MS });
      const { code, message } = describeError(error);
      logger.warn("{name}@{version} is not ready: {reason}", { name, version, code, reason: message });
      throw error;
    }
    this.#failed.delete(name);
    const { isolation, maxChildren, maxQueue, queueMs } = spec.http ?? Serving.parse({});
    const ports = this.#portsOf(worker, family);
    const service = new JsService({
      ...{ ports, maxChildren, maxQueue, queueMs },
      isolation: isolationOf(isolation),
    });
    const before = this.#running.get(name);
    this.#running.set(name, { version, service });
    if (before) this.#retire(before);
  }

  #portsOf({ name, spec, secrets }: ServedVersion, family: string): ScalingPorts<JsChild> {
    const families = this.#families;
    const output = this.logs.of(name);
    const outbound = outboundOf({ allow: spec.allow ?? [], guard: this.#guard });
    let index = 0;
    return {
      admit: (signal) => families.admit(family, signal),
      fork: async (signal) => {
        using stack = new DisposableStack();
        const { parent } = stack.use(await families.hold(family, spec, signal));
        const values = await secrets();
        const child = await families.fork(family, parent, signal, () =>
          JsChild.fork(parent, {
            ...{ index: ++index, name, env: spec.env, secrets: values, output, outbound, signal },
          }),
        );
        stack.use(families.measured(family, child));
        const held = stack.move();
        void child.exited.then(() => held.dispose());
        return child;
      },
      // Those of a host are shared among its families by use: each fork is one.
      keepShells: () => undefined,
      isRoomWanted: () => families.isRoomWanted,
    };
  }

  #retire({ service }: Running): void {
    const retire = async () => {
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, DRAIN_MS);
      this.#stop.signal.addEventListener("abort", () => resolve(), { once: true });
      if (this.#stop.signal.aborted) resolve();
      await Promise.race([service.idle(), late]);
      clearTimeout(timer);
      await service[Symbol.asyncDispose]();
    };
    this.#inBackground(retire());
  }

  /** Work whose failure has been told already. */
  #inBackground(work: Promise<void>): void {
    const quiet = work.catch(() => undefined);
    this.#background.add(quiet);
    void quiet.finally(() => this.#background.delete(quiet));
  }
}

function isolationOf(isolation: WorkerIsolation): Isolation {
  if (isolation.mode !== "session") return isolation;
  const { mode, concurrency, idleMs, maxAgeMs } = isolation;
  return { mode, concurrency, idleMs, maxAgeMs };
}
