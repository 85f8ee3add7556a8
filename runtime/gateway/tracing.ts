import { AsyncLocalStorage } from "node:async_hooks";
import { getLogger } from "@logtape/logtape";
import {
  type Context,
  type ContextManager,
  context,
  DiagLogLevel,
  diag,
  propagation,
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  trace,
} from "@opentelemetry/api";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
} from "@opentelemetry/resources";
import { BatchSpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";
import type { MiddlewareHandler } from "hono";
import { createMiddleware } from "hono/factory";
import type { GatewayEnv } from "./context.ts";
import { routeOf } from "./metrics.ts";

const logger = getLogger(["flurry", "tracing"]);
/** Most time that the last spans may take to be sent when the gateway ends. */
const FLUSH_MS = 3000;
/** What monitors ask all the time. */
const UNTRACED = new Set(["/healthz", "/readyz", "/metrics"]);
const propagator = new W3CTraceContextPropagator();

/**
 * Sends traces by OTLP over HTTP (JSON) from here on, if OTEL_EXPORTER_OTLP_ENDPOINT or
 * OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names a collector; OpenTelemetry's other variables of OTLP and of
 * the resource hold too. What cannot be sent is dropped: nothing waits for the collector but, for at
 * most 3 s, the disposal.
 *
 * @returns undefined when no collector is configured
 */
export function openTracing(options: { flushMs?: number } = {}): AsyncDisposable | undefined {
  const { OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_SDK_DISABLED } = process.env;
  const configured = Boolean(OTEL_EXPORTER_OTLP_ENDPOINT || OTEL_EXPORTER_OTLP_TRACES_ENDPOINT);
  if (!configured || OTEL_SDK_DISABLED?.toLowerCase() === "true") return undefined;
  const provider = new TracerProvider({
    resource: defaultResource()
      .merge(resourceFromAttributes({ "service.name": "flurry" }))
      .merge(detectResources({ detectors: [envDetector] })),
    spanProcessors: [new BatchSpanProcessor({ exporter: new OTLPTraceExporter() })],
  });
  diag.setLogger(diagLogger, DiagLogLevel.WARN);
  context.setGlobalContextManager(new AsyncContextManager());
  propagation.setGlobalPropagator(propagator);
  trace.setGlobalTracerProvider(provider);
  return {
    [Symbol.asyncDispose]: async () => {
      await within(provider.shutdown(), options.flushMs ?? FLUSH_MS);
      trace.disable();
      propagation.disable();
      context.disable();
      diag.disable();
    },
  };
}

/**
 * Makes a span of each request, in the trace that the asker names in `traceparent`. A job that is
 * submitted takes `c.var.traceparent` along, with or without a collector.
 */
export function traceRequests(): MiddlewareHandler<GatewayEnv> {
  return createMiddleware<GatewayEnv>(async (c, next) => {
    if (UNTRACED.has(c.req.path)) return next();
    const asked = propagator.extract(ROOT_CONTEXT, c.req.header(), headersGetter);
    const { method, path } = c.req;
    const attributes = {
      "http.request.method": method,
      "url.path": path,
      "flurry.request_id": c.var.requestId,
    };
    const span = trace.getTracer("flurry").startSpan(method, { kind: SpanKind.SERVER, attributes }, asked);
    const inside = trace.setSpan(asked, span);
    const carrier: { traceparent?: string } = {};
    propagator.inject(inside, carrier, carrierSetter);
    c.set("traceparent", carrier.traceparent);
    try {
      await context.with(inside, next);
      const route = routeOf(c);
      span.updateName(`${method} ${route}`);
      span.setAttributes({ "http.route": route, "http.response.status_code": c.res.status });
      if (c.res.status >= 500) span.setStatus({ code: SpanStatusCode.ERROR });
      if (span.isRecording() && carrier.traceparent !== undefined) {
        c.res.headers.set("traceparent", carrier.traceparent);
      }
    } finally {
      span.end();
    }
  });
}

const headersGetter = {
  keys: (headers: Record<string, string>) => Object.keys(headers),
  get: (headers: Record<string, string>, key: string) => headers[key],
};

const carrierSetter = {
  set: (carrier: { traceparent?: string }, key: string, value: string) => {
    if (key === "traceparent") carrier.traceparent = value;
  },
};

/** Carries the active span through promises and timers. */
class AsyncContextManager implements ContextManager {
  readonly #storage = new AsyncLocalStorage<Context>();

  active(): Context {
    return this.#storage.getStore() ?? ROOT_CONTEXT;
  }

  with<A extends unknown[], F extends (...args: A) => ReturnType<F>>(
    inside: Context,
    fn: F,
    thisArg?: ThisParameterType<F>,
    ...args: A
  ): ReturnType<F> {
    return this.#storage.run(inside, () => fn.apply(thisArg, args));
  }

  bind<T>(inside: Context, target: T): T {
    if (typeof target !== "function") return target;
    const bound = (...args: unknown[]) => this.#storage.run(inside, () => target(...args));
    return bound as T;
  }

  enable(): this {
    return this;
  }

  disable(): this {
    this.#storage.disable();
    return this;
  }
}

/** What OpenTelemetry itself has to say: that a collector cannot be reached. */
const diagLogger = {
  error: (message: string) => logger.warn("{message}", { message }),
  warn: (message: string) => logger.warn("{message}", { message }),
  info: (message: string) => logger.debug("{message}", { message }),
  debug: (message: string) => logger.debug("{message}", { message }),
  verbose: (message: string) => logger.debug("{message}", { message }),
};

async function within(promise: Promise<void>, ms: number): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(() => {
    logger.warn("The last spans were not sent in {ms} ms", { ms });
    resolve();
  }, ms);
  const sent = promise.catch((error: unknown) => {
    logger.warn("The last spans were not sent: {error}", { error });
  });
  await Promise.race([sent, late]);
  clearTimeout(timer);
}
