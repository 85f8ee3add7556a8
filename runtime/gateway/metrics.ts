import { getLogger } from "@logtape/logtape";
import type { MiddlewareHandler } from "hono";
import { createMiddleware } from "hono/factory";
import { matchedRoutes } from "hono/route";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { lookupCode } from "../../errors/codes.ts";
import type { SetAside } from "../api/mod.ts";
import type { DispatchObserver } from "../jobs/observer.ts";
import type { Store } from "../jobs/ports.ts";
import type { RequestFigures } from "../workers/js/request-figures.ts";
import { addProcessMetrics } from "./metrics-process.ts";
import { addRequestMetrics, waitsText } from "./metrics-requests.ts";

const logger = getLogger(["flurry", "gateway"]);

/** Seconds of an answer, and of a child's start. */
const SHORT = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
/** Seconds of an attempt. */
const LONG = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600];
const METHODS = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);

type AttemptEnded = Parameters<NonNullable<DispatchObserver["attemptEnded"]>>[0];

/**
 * What became of a time at which `scheduled()` was to be called:
 * - `failed`: by the worker's fault
 * - `infrastructure`: it could not be called
 * - `skipped`: the call before had not ended
 * - `missed`: nobody looked at the clock then
 */
export type ScheduledOutcome = "succeeded" | "failed" | "infrastructure" | "skipped" | "missed";

/**
 * Figures of the gateway for Prometheus. Labels have few values: never an id, a name or a key.
 * docs/operations.md lists them all.
 */
export class GatewayMetrics implements DispatchObserver {
  readonly #registry = new Registry();
  readonly #requests: Counter<"method" | "route" | "status">;
  readonly #requestSeconds: Histogram<"method" | "route">;
  readonly #streams: Gauge<"kind">;
  readonly #tasks: Counter<"outcome">;
  readonly #attempts: Counter<"outcome" | "code">;
  readonly #waitSeconds: Histogram;
  readonly #attemptSeconds: Histogram<"outcome">;
  readonly #forkSeconds: Histogram;
  readonly #identifySeconds: Histogram;
  readonly #setAside: Gauge<"kind">;
  readonly #setAsideTotal: Counter<"kind">;
  readonly #webhooks: Counter<"outcome">;
  readonly #scheduled: Counter<"outcome">;
  readonly #unproven: Counter<"field">;
  readonly #receiptsLost: Counter;
  readonly #store: Pick<Store, "jobs">;
  readonly #activeJobs: Gauge;
  readonly #waiting: Gauge;
  readonly #running: Gauge;
  readonly #storeUp: Gauge;
  #requestFigures: (() => RequestFigures) | undefined;
  /** What is set aside now, as `kind id`. */
  readonly #aside = new Map<string, SetAside["kind"]>();

  constructor(store: Pick<Store, "jobs">) {
    const registers = [this.#registry];
    this.#requests = new Counter({
      name: "flurry_http_requests_total",
      help: "Requests answered",
      labelNames: ["method", "route", "status"],
      registers,
    });
    this.#requestSeconds = new Histogram({
      name: "flurry_http_request_seconds",
      help: "From a request to the head of its answer",
      labelNames: ["method", "route"],
      buckets: SHORT,
      registers,
    });
    this.#streams = new Gauge({
      name: "flurry_streams_open",
      help: "Answers that are still being streamed",
      labelNames: ["kind"],
      registers,
    });
    this.#tasks = new Counter({
      name: "flurry_tasks_total",
      help: "Tasks that ran and ended for good",
      labelNames: ["outcome"],
      registers,
    });
    this.#attempts = new Counter({
      name: "flurry_attempts_total",
      help: "Attempts ended, with the error's code",
      labelNames: ["outcome", "code"],
      registers,
    });
    this.#attemptSeconds = new Histogram({
      name: "flurry_attempt_seconds",
      help: "From the claim of a task to the end of the attempt",
      labelNames: ["outcome"],
      buckets: LONG,
      registers,
    });
    this.#waitSeconds = histogram(
      "flurry_wait_seconds",
      "From the queueing of a task to its claim; not of tasks that a failure has delayed",
      LONG,
      registers,
    );
    this.#forkSeconds = histogram(
      "flurry_fork_seconds",
      "From a fork to its running child",
      SHORT,
      registers,
    );
    this.#identifySeconds = histogram(
      "flurry_identify_seconds",
      "From a running child to one that has proven who it is",
      SHORT,
      registers,
    );
    this.#setAside = new Gauge({
      name: "flurry_set_aside",
      help: "Hosts and workers that keep failing and are not used for now",
      labelNames: ["kind"],
      registers,
      collect: () => this.#countAside(),
    });
    this.#setAsideTotal = new Counter({
      name: "flurry_set_aside_total",
      help: "How often a host or a worker was set aside",
      labelNames: ["kind"],
      registers,
    });
    this.#webhooks = new Counter({
      name: "flurry_webhook_attempts_total",
      help: "Attempts to deliver a webhook",
      labelNames: ["outcome"],
      registers,
    });
    this.#scheduled = new Counter({
      name: "flurry_scheduled_total",
      help: "Times at which scheduled() of a worker was to be called",
      labelNames: ["outcome"],
      registers,
    });
    this.#unproven = new Counter({
      name: "flurry_children_unproven_total",
      help: "Children that were killed since they had not proven who they are, by what was wrong",
      labelNames: ["field"],
      registers,
    });
    this.#receiptsLost = new Counter({
      name: "flurry_receipts_lost_total",
      help: "Receipts of children that could not be stored",
      registers,
    });
    this.#store = store;
    this.#activeJobs = gauge("flurry_jobs_active", "Jobs that have not ended", registers);
    this.#waiting = gauge("flurry_tasks_waiting", "Tasks that wait: queued or retrying", registers);
    this.#running = gauge("flurry_tasks_running", "Tasks that run", registers);
    this.#storeUp = gauge("flurry_store_up", "1 when the store answered for these figures", registers);
    addProcessMetrics(registers);
  }

  /** Counts and times every request by the template of its route. */
  middleware(): MiddlewareHandler {
    return createMiddleware(async (c, next) => {
      const began = performance.now();
      await next();
      const route = routeOf(c);
      const method = METHODS.has(c.req.method) ? c.req.method : "OTHER";
      this.#requests.inc({ method, route, status: c.res.status });
      this.#requestSeconds.observe({ method, route }, (performance.now() - began) / 1000);
    });
  }

  /** Counts an open stream until it is disposed. */
  stream(kind: "events" | "logs" | "results" | "artifacts" | "exec" | "files"): Disposable {
    this.#streams.inc({ kind });
    let open = true;
    return {
      [Symbol.dispose]: () => {
        if (open) this.#streams.dec({ kind });
        open = false;
      },
    };
  }

  claimed({ waitedMs }: { waitedMs?: number | undefined }): void {
    if (waitedMs !== undefined) this.#waitSeconds.observe(waitedMs / 1000);
  }

  childStarted({ runningMs, identifyMs }: { runningMs: number; identifyMs: number }): void {
    this.#forkSeconds.observe(runningMs / 1000);
    this.#identifySeconds.observe(identifyMs / 1000);
  }

  attemptEnded({ outcome, code, ms }: AttemptEnded): void {
    this.#attempts.inc({ outcome, code: lookupCode(code) === undefined ? "" : code! });
    this.#attemptSeconds.observe({ outcome }, ms / 1000);
    if (outcome === "succeeded" || outcome === "failed" || outcome === "canceled")
      this.#tasks.inc({ outcome });
  }

  setAside({ kind, id }: Pick<SetAside, "kind" | "id">): void {
    const key = `${kind} ${id}`;
    if (!this.#aside.has(key)) this.#setAsideTotal.inc({ kind });
    this.#aside.set(key, kind);
  }

  restored({ kind, id }: Pick<SetAside, "kind" | "id">): void {
    this.#aside.delete(`${kind} ${id}`);
  }

  webhookAttempted(outcome: "delivered" | "retrying" | "failed"): void {
    this.#webhooks.inc({ outcome });
  }

  scheduledEnded(outcome: ScheduledOutcome): void {
    this.#scheduled.inc({ outcome });
  }

  childUnproven(field: string): void {
    this.#unproven.inc({ field });
  }

  receiptsLost(count: number): void {
    this.#receiptsLost.inc(count);
  }

  /** Has figures of the requests to JS workers from now on. To be called once. */
  watchRequests(figures: () => RequestFigures): void {
    this.#requestFigures = figures;
    addRequestMetrics([this.#registry], figures);
  }

  /** All figures as Prometheus reads them. */
  async text(): Promise<{ body: string; contentType: string }> {
    await this.#askStore();
    const parts = [await this.#registry.metrics()];
    if (this.#requestFigures) parts.push(waitsText(this.#requestFigures()));
    return { body: parts.join("\n"), contentType: this.#registry.contentType };
  }

  /** What waits and runs is the store's to know. The other figures are needed most when it fails. */
  async #askStore(): Promise<void> {
    try {
      const load = await this.#store.jobs.load();
      this.#activeJobs.set(load.activeJobs);
      this.#waiting.set(load.waitingTasks);
      this.#running.set(load.runningTasks);
      this.#storeUp.set(1);
    } catch (error) {
      this.#storeUp.set(0);
      logger.error("Cannot count what waits and runs: {error}", { error });
    }
  }

  #countAside(): void {
    for (const kind of ["host", "worker"] as const) {
      this.#setAside.set({ kind }, [...this.#aside.values()].filter((each) => each === kind).length);
    }
  }
}

/** The template of the route that answered, such as `/v1/jobs/{id}`; "none" for what no route takes. */
export function routeOf(c: Parameters<typeof matchedRoutes>[0]): string {
  // Middleware is registered for all methods, routes for one.
  const route = matchedRoutes(c).findLast(({ method }) => method !== "ALL");
  return route?.path.replace(/:([A-Za-z]\w*)(\{[^}]*\})?/g, "{$1}") ?? "none";
}

function gauge(name: string, help: string, registers: Registry[]): Gauge {
  return new Gauge({ name, help, registers });
}

function histogram(name: string, help: string, buckets: number[], registers: Registry[]): Histogram {
  return new Histogram({ name, help, buckets, registers });
}
