import { FlurryError } from "../../errors/errors.ts";
import { type HttpServer, listen } from "../adapters/http-server.ts";
import { type Clock, systemClock } from "../clock.ts";
import { Dispatcher } from "../jobs/dispatcher.ts";
import { type JobLimits, Jobs } from "../jobs/jobs.ts";
import type { Store } from "../jobs/ports.ts";
import { systemAfter } from "../jobs/timer.ts";
import { openStore } from "../store/open.ts";
import { createApp, type GatewayApp } from "./app.ts";
import { isLoopback } from "./auth.ts";
import type { GatewayContext, GatewayLimits, GatewayRuntime } from "./context.ts";
import { accessLog } from "./logging.ts";
import { GatewayMetrics } from "./metrics.ts";
import { bareProblem } from "./problem.ts";
import { Receipts } from "./receipts.ts";
import { gatewayRoutes } from "./routes.ts";
import { Schedules } from "./schedules.ts";
import { StreamPace } from "./stream-pace.ts";
import { openTracing, traceRequests } from "./tracing.ts";
import { WebhookGuard } from "./webhook-guard.ts";
import { WebhookSender } from "./webhook-sender.ts";
import { WorkerHosts } from "./worker-hosts.ts";

/** How long answers that are under way may take when the gateway ends; streams end at once. */
const ANSWERS_MS = 5000;

const LIMITS: GatewayLimits = {
  // A worker's files are at most 16 MiB, in base64.
  bodyBytes: 32 * 1024 * 1024,
  bodiesBytes: 256 * 1024 * 1024,
  streamBytes: 8 * 1024 * 1024 * 1024,
  bodySilenceMs: 60_000,
  bodyMs: 600_000,
  // As on Cloudflare.
  scheduledMs: 900_000,
};

export interface GatewayOptions {
  /** Data directory; made when missing, and this process's alone. */
  dir: string;
  listen: { hostname: string; port: number };
  /** Opens what runs tasks, when the data directory is known to be ours. The gateway disposes it. */
  runtime: () => GatewayRuntime | Promise<GatewayRuntime>;
  /** How long running tasks may go on when the gateway ends. What is aborted then is run again. @default 0 */
  drainMs?: number | undefined;
  /** How long a lease on a task lasts. @default 30000 */
  leaseMs?: number | undefined;
  /** Hosts, as `host` or `host:port`, that webhooks may be sent to although they are not public. */
  webhookAllow?: readonly string[] | undefined;
  limits?: Partial<GatewayLimits & JobLimits> | undefined;
  /** @default the system's */
  clock?: Clock | undefined;
}

/** A gateway that answers. Disposing ends it in order: see `openGateway`. */
export interface Gateway extends AsyncDisposable {
  url: string;
  port: number;
  /** What it works with, for those who look inside. */
  context: GatewayContext;
}

/**
 * Opens a gateway: store, runtime, dispatcher, webhooks, and at last the server, so that nobody is
 * answered before all is there. It ends the other way round: it accepts no more and ends the streams,
 * lets tasks go on for `drainMs` and puts back what still runs, and closes the store.
 *
 * @throws FlurryError DATA_IN_USE, STORE_TOO_NEW, STORE_FAILED, NO_SPACE; KEYS_REQUIRED when others than
 * this machine could ask and no key is there; BAD_ARGUMENT when it cannot listen there
 */
export async function openGateway(options: GatewayOptions): Promise<Gateway> {
  const { clock = systemClock, limits } = options;
  await using stack = new AsyncDisposableStack();
  const guard = new WebhookGuard({ allow: options.webhookAllow ?? [] });
  stack.use(openTracing());
  const store = stack.use(await openStore({ dir: options.dir, clock }));
  await requireKeys(store, options.listen.hostname);
  const metrics = new GatewayMetrics(store);
  // Before the runtime, whose last children are told of while it ends.
  const receipts = stack.use(new Receipts({ store: store.receipts, metrics }));
  const runtime = stack.use(await options.runtime());
  const watch = runtime.watchChildren?.(receipts);
  if (watch) stack.use(watch);
  const { requests } = runtime;
  if (requests) metrics.watchRequests(() => requests.figures());
  const { drainMs, leaseMs } = options;
  const hosts = new WorkerHosts(store.workers);
  const allLimits = { ...LIMITS, ...limits };
  const ending = new AbortController();
  const schedules = new Schedules({
    ...{ store, hosts, metrics, clock, drainMs, after: systemAfter },
    requests: runtime.requests,
    timeoutMs: allLimits.scheduledMs,
    ending: ending.signal,
  });
  // Before the dispatcher, so that both let go on at the same time what runs when the gateway ends.
  stack.use(schedules);
  const dispatcher = new Dispatcher({ store, runtime, clock, observer: metrics, drainMs, leaseMs });
  stack.use(dispatcher);
  const jobs = stack.use(new Jobs({ store, dispatcher, limits }));
  const sender = stack.use(new WebhookSender({ deliveries: store.deliveries, guard, clock, metrics }));
  const context: GatewayContext = {
    store,
    jobs,
    dispatcher,
    runtime,
    clock,
    guard,
    metrics,
    pace: new StreamPace(),
    receipts,
    hosts,
    schedules,
    signal: ending.signal,
    limits: allLimits,
  };
  const app = createApp(context, {
    middleware: [accessLog(), metrics.middleware(), traceRequests()],
    routes: gatewayRoutes(context),
  });
  const server = await serve(app, options.listen);
  stack.defer(() => {
    ending.abort(new FlurryError("SHUTTING_DOWN", "The gateway is ending"));
    return server.stop(ANSWERS_MS);
  });
  // After that: a gateway that cannot listen takes no task.
  await dispatcher.start();
  await jobs.start();
  sender.start();
  schedules.start();
  const opened = stack.move();
  return {
    url: server.url,
    port: server.port,
    context,
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}

/** @throws FlurryError KEYS_REQUIRED */
async function requireKeys(store: Store, hostname: string): Promise<void> {
  if (isLoopback(hostname.includes(":") ? `[${hostname}]` : hostname)) return;
  if ((await store.keys.list()).length > 0) return;
  throw new FlurryError("KEYS_REQUIRED", `Anybody who reaches ${hostname} could run jobs: there is no key`, {
    hint: "make one first: flurry serve (on 127.0.0.1), then flurry key create --scope admin",
  });
}

function serve(app: GatewayApp, { hostname, port }: GatewayOptions["listen"]): Promise<HttpServer> {
  return listen({ hostname, port, fetch: (request) => app.fetch(request), onError: bareProblem });
}
