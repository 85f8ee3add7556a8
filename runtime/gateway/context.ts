import type { KeyLimits, ScheduledRun, Scope } from "../api/mod.ts";
import type { Clock } from "../clock.ts";
import type { Dispatcher } from "../jobs/dispatcher.ts";
import type { Jobs } from "../jobs/jobs.ts";
import type { Store } from "../jobs/ports.ts";
import type { ChildObserver, TaskRuntime } from "../jobs/task-runtime.ts";
import type { CronEvent, ScheduledEnd, ScheduledOptions } from "../workers/js/js-scheduled.ts";
import type { ServedVersion, ServeOptions } from "../workers/js/js-services.ts";
import type { RequestFigures } from "../workers/js/request-figures.ts";
import type { WorkerLogs } from "../workers/js/worker-logs.ts";
import type { Vms } from "../workers/vms/port.ts";
import type { GatewayMetrics } from "./metrics.ts";
import type { Receipts } from "./receipts.ts";
import type { StreamPace } from "./stream-pace.ts";
import type { WebhookGuard } from "./webhook-guard.ts";
import type { WorkerHosts } from "./worker-hosts.ts";

/** Answers requests with workers that are JS modules: `JsServices`. */
export interface WorkerRequests {
  handle(worker: ServedVersion, request: Request, options: ServeOptions): Promise<Response>;
  scheduled(worker: ServedVersion, event: CronEvent, options: ScheduledOptions): Promise<ScheduledEnd>;
  remove(name: string): void;
  figures(): RequestFigures;
  readonly logs: Pick<WorkerLogs, "read" | "onAppend" | "note">;
}

/** Calls `scheduled()` of workers by hand: `Schedules`. */
export interface WorkerTriggers {
  trigger(name: string, cron: string | undefined, signal: AbortSignal): Promise<ScheduledRun>;
}

/** What runs tasks, and answers requests if it can. */
export type GatewayRuntime = TaskRuntime & {
  readonly requests?: WorkerRequests | undefined;
  /** VMs that are made, forked and ended by hand. */
  readonly vms?: Vms | undefined;
  /** Tells of its VMs, if it has some, what they prove. */
  watchChildren?(observer: ChildObserver): Disposable;
};

/** What every route works with. */
export interface GatewayContext {
  store: Store;
  jobs: Jobs;
  dispatcher: Dispatcher;
  runtime: GatewayRuntime;
  hosts: WorkerHosts;
  schedules: WorkerTriggers;
  clock: Clock;
  /** Aborted when the gateway ends: open streams end then. */
  signal: AbortSignal;
  limits: GatewayLimits;
  /** Refuses webhooks to where none may go; asked when a job is submitted and at each delivery. */
  guard: WebhookGuard;
  metrics: GatewayMetrics;
  pace: StreamPace;
  receipts: Receipts;
}

export interface GatewayLimits {
  /** Most bytes of a JSON body. */
  bodyBytes: number;
  /** Most bytes of all JSON bodies that are read and worked on at a time. */
  bodiesBytes: number;
  /** Most bytes of a body of NDJSON. */
  streamBytes: number;
  /** Longest silence in the middle of a body, in ms. */
  bodySilenceMs: number;
  /** Longest time that a JSON body may take to arrive, in ms. */
  bodyMs: number;
  /** Longest time of one call of a worker's `scheduled()`, the wait for its VM included, in ms. */
  scheduledMs: number;
}

/** Who asks. */
export interface Principal {
  /** Id of the key; "" where no keys are needed. It owns the jobs that it submits. */
  owner: string;
  scopes: ReadonlySet<Scope>;
  limits: KeyLimits;
}

/** What the middleware knows of a request. */
export interface GatewayEnv {
  Variables: {
    requestId: string;
    principal: Principal;
    /** W3C trace context that a job which is submitted now belongs to. */
    traceparent?: string | undefined;
  };
}
