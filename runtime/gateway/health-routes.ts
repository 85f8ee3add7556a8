import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { FlurryError } from "../../errors/errors.ts";
import type { HostEntry } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems } from "./openapi.ts";

const tags = ["gateway"];
const Health = z.object({ status: z.literal("ok") }).meta({ id: "Health" });

const alive = createRoute({
  method: "get",
  path: "/healthz",
  operationId: "isAlive",
  tags,
  summary: "Whether the gateway lives",
  description: "It says nothing else: who restarts a gateway that does not answer needs no more.",
  security: [],
  responses: { 200: jsonResponse("It lives", Health) },
});

const ready = createRoute({
  method: "get",
  path: "/readyz",
  operationId: "isReady",
  tags,
  summary: "Whether the gateway does its work: its store answers, and a host takes tasks",
  security: [],
  responses: { 200: jsonResponse("It is ready", Health), ...problems() },
});

const figures = createRoute({
  method: "get",
  path: "/metrics",
  operationId: "getMetrics",
  tags,
  summary: "Figures for Prometheus",
  middleware: requireScope("read"),
  responses: {
    200: { description: "In Prometheus' text format", content: { "text/plain": { schema: z.string() } } },
    ...problems(),
  },
});

/** What monitors ask for. */
export function healthRoutes({ store, metrics, signal }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(alive, (c) => c.json({ status: "ok" as const }, 200));

  app.openapi(ready, async (c) => {
    if (signal.aborted) throw new FlurryError("SHUTTING_DOWN", "The gateway is ending");
    const hosts = await store.hosts.list().catch((cause: unknown) => {
      throw new FlurryError("NOT_READY", "The store does not answer", { cause });
    });
    if (!hosts.some(({ state }) => state === "up")) throw notReady(hosts);
    return c.json({ status: "ok" as const }, 200);
  });

  app.openapi(figures, async (c) => {
    const { body, contentType } = await metrics.text();
    return c.text(body, 200, { "Content-Type": contentType });
  });

  return app;
}

/** Anybody may ask: why it is so is told to the log, and to those who may see the hosts. */
function notReady(hosts: readonly HostEntry[]): FlurryError {
  const reasons = hosts.map(({ name, state, setAside }) => {
    const entry = setAside.find(({ kind }) => kind === "host");
    return `${name} is ${state}${entry === undefined ? "" : `: ${entry.reason}`}`;
  });
  return new FlurryError("NOT_READY", "No host takes tasks", {
    cause: new Error(reasons.join("; ")),
    hint: "GET /v1/hosts says what is set aside, why, and when it is tried again",
  });
}
