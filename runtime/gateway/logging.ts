import {
  configure,
  dispose,
  getJsonLinesFormatter,
  getLogger,
  type LogLevel,
  type Sink,
} from "@logtape/logtape";
import type { MiddlewareHandler } from "hono";
import { createMiddleware } from "hono/factory";
import type { GatewayEnv, Principal } from "./context.ts";
import { routeOf } from "./metrics.ts";

const access = getLogger(["flurry", "access"]);

/**
 * Writes what the gateway logs to stderr, one JSON object a line, until it is disposed. A service does
 * this once; as a library Flurry is silent.
 */
export async function startLogging(
  options: { level?: LogLevel; write?: (line: string) => void } = {},
): Promise<AsyncDisposable> {
  const { level = "info", write = (line: string) => process.stderr.write(line) } = options;
  const format = getJsonLinesFormatter({ properties: "flatten", message: "rendered" });
  const lines: Sink = ({ message, properties, ...record }) =>
    write(format({ ...record, message: [plain(message)], properties: readable(properties) }));
  await configure({
    reset: true,
    sinks: { lines },
    loggers: [
      { category: "flurry", lowestLevel: level, sinks: ["lines"] },
      { category: ["logtape", "meta"], lowestLevel: "warning", sinks: ["lines"] },
    ],
  });
  return { [Symbol.asyncDispose]: dispose };
}

/** Logs one line for each request. Only what cannot hold a secret: neither paths with their query nor bodies. */
export function accessLog(): MiddlewareHandler<GatewayEnv> {
  return createMiddleware<GatewayEnv>(async (c, next) => {
    const began = performance.now();
    await next();
    const principal: Principal | undefined = c.var.principal;
    access.info("{method} {route} {status}", {
      method: c.req.method,
      route: routeOf(c),
      status: c.res.status,
      ms: Math.round((performance.now() - began) * 10) / 10,
      requestId: c.var.requestId,
      ...(principal?.owner ? { key: principal.owner } : {}),
    });
  });
}

/** A message with the values in it as people write them; the properties have them whole, with their types. */
function plain(message: readonly unknown[]): string {
  return message
    .map((part) => {
      if (part instanceof Error) return part.message;
      return typeof part === "object" ? JSON.stringify(part) : String(part);
    })
    .join("");
}

/** Errors have nothing that JSON shows of itself. */
function readable(properties: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(properties).map(([key, value]) => [
      key,
      value instanceof Error ? errorText(value) : value,
    ]),
  );
}

function errorText(error: Error): string {
  const text = error.stack ?? String(error);
  return error.cause instanceof Error ? `${text}\nCaused by ${errorText(error.cause)}` : text;
}
