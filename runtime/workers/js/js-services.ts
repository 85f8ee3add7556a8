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
import { guardForks } from "./fork-guard.ts";
import { ForksUnderWay } from "./forks-under-way.ts";
import { JsChild } from "./js-child.ts";
import { type CronEvent, runScheduled, type ScheduledEnd, type ScheduledOptions } from "./js-scheduled.ts";
import { JsService } from "./js-service.ts";
import { outboundOf } from "./outbound.ts";
import { noFigures, type RequestFigures, sumOfFigures } from "./request-figures.ts";
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
  /** When it was last asked; monotonic. */
  askedAt: number;
}

/** What services need of the families; `Families` has this shape. */
export type ServiceFamilies = Pick<
  Families,
  "prepare" | "hold" | "admit" | "admitAhead" | "fork" | "measured" | "isRoomWanted" | "onWaiting" | "cores"
>;

/**
 * Answers requests to deployed JS workers: each by the version that it names, as soon as that is ready;
 * until then by the one before, if there is one. A version that has been replaced ends when its requests
 * have.
 */
export class JsServices implements AsyncDisposable {
  /** What the workers print. */
  readonly logs = new WorkerLogs();
  readonly #families: ServiceFamilies;
  readonly #guard: AddressGuard;
  readonly #running = new Map<string, Running>();
  /** The version that each worker was last asked for: the one that is to run. */
  readonly #wanted = new Map<string, number>();
  readonly #opening = new SingleFlight();
  /** Versions that could not be made ready: why, and until when. Monotonic. */
  readonly #failed = new Map<string, { version: number; error: unknown; until: number }>();
  readonly #background = new Set<Promise<void>>();
  /** Services that end, and what those that have ended had done. */
  readonly #retiring = new Set<JsService>();
  #past = noFigures();
  readonly #underWay: ForksUnderWay;
  readonly #waiting: Disposable;
  readonly #stop = new AbortController();

  /** @param guard - says which addresses of what a worker may ask it may have; from `outboundGuard` */
  constructor(families: ServiceFamilies, guard: AddressGuard) {
    this.#families = families;
    this.#guard = guard;
    this.#underWay = new ForksUnderWay(families.cores);
    this.#waiting = families.onWaiting(() => this.#giveWay());
  }

  /**
   * @throws FlurryError as `JsService.handle`; WORKER_LOAD_FAILED and what `Families.prepare` throws, when
   * there is no version that can answer
   */
  async handle(worker: ServedVersion, request: Request, options: ServeOptions = {}): Promise<Response> {
    this.#wanted.set(worker.name, worker.version);
    const running = await this.#serviceFor(worker, request.signal);
    running.askedAt = performance.now();
    const { service } = running;
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

  /** What all of them do now, and have done, those that have ended included. */
  figures(): RequestFigures {
    const services = [...[...this.#running.values()].map(({ service }) => service), ...this.#retiring];
    return sumOfFigures([this.#past, ...services.map((service) => service.figures())]);
  }

  /** A worker has been removed: its service ends when its requests have. */
  remove(name: string): void {
    const running = this.#running.get(name);
    this.#running.delete(name);
    this.#wanted.delete(name);
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
    const before = this.#running.get(name);
    const wanted = this.#wanted.get(name);
    if (wanted === undefined) throw new FlurryError("WORKER_NOT_FOUND", `The worker "${name}" was removed`);
    // Another one has been asked for while this one loaded, and what runs is no worse than this.
    if (before && wanted !== version) return;
    this.#failed.delete(name);
    const { isolation, maxChildren, maxQueue, queueMs, ahead } = spec.http ?? Serving.parse({});
    const ports = guardForks(this.#portsOf(worker, family), { name });
    const service = new JsService({
      ...{ ports, maxChildren, maxQueue, queueMs, ahead },
      isolation: isolationOf(isolation),
    });
    this.#running.set(name, { version, service, askedAt: performance.now() });
    if (before) this.#retire(before);
  }

  #portsOf({ name, spec, secrets }: ServedVersion, family: string): ScalingPorts<JsChild> {
    const families = this.#families;
    const output = this.logs.of(name);
    const outbound = outboundOf({ allow: spec.allow ?? [], guard: this.#guard });
    let index = 0;
    return {
      admit: (signal) => families.admit(family, signal),
      admitAhead: () => (this.#underWay.isFull ? undefined : families.admitAhead(family)),
      fork: async (signal) => {
        using stack = new DisposableStack();
        const { parent } = stack.use(await families.hold(family, spec, signal));
        const values = await secrets();
        const options = { index: ++index, name, env: spec.env, secrets: values, output, outbound, signal };
        const child = await this.#underWay.during(() =>
          families.fork(family, parent, signal, () => JsChild.fork(parent, options)),
        );
        stack.use(families.measured(family, child));
        const held = stack.move();
        void child.exited.then(() => held.dispose());
        return child;
      },
      isRoomWanted: () => families.isRoomWanted,
    };
  }

  /** Has a child without requests end for others: one that nobody has used, of who was asked longest ago. */
  #giveWay(): void {
    const running = [...this.#running.values()].sort((a, b) => a.askedAt - b.askedAt);
    const services = [...this.#retiring, ...running.map(({ service }) => service)];
    const isOver = services.some((service) => service.giveWay({ unusedOnly: true }));
    if (!isOver) services.some((service) => service.giveWay());
  }

  #retire({ service }: Running): void {
    service.stopAhead();
    this.#retiring.add(service);
    const retire = async () => {
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, DRAIN_MS);
      this.#stop.signal.addEventListener("abort", () => resolve(), { once: true });
      if (this.#stop.signal.aborted) resolve();
      await Promise.race([service.idle(), late]);
      clearTimeout(timer);
      try {
        await service[Symbol.asyncDispose]();
      } finally {
        this.#past = sumOfFigures([this.#past, service.figures()]);
        this.#retiring.delete(service);
      }
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
