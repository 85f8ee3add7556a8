import { createHash } from "node:crypto";
import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { Name, WorkerStatus } from "../api/mod.ts";
import { familyOf } from "../jobs/family.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems, waitQuery } from "./openapi.ts";
import { readUntil, Watch } from "./watch.ts";
import { notFound, readinessOf } from "./workers-routes.ts";

const watchState = createRoute({
  method: "get",
  path: "/v1/workers/{name}/state",
  operationId: "watchWorkerState",
  tags: ["workers"],
  summary: "See how far a version of a worker is, and wait for what comes next",
  description:
    "To follow, ask again with `seen` as `after`: the answer comes as soon as there is something else.",
  middleware: requireScope("read"),
  request: {
    params: z.object({ name: Name }),
    query: z.object({
      version: z.coerce
        .number()
        .int()
        .min(1)
        .optional()
        .meta({ description: "The current one if it is left out" }),
      after: z.string().max(64).optional().meta({ description: "`seen` of the answer before" }),
      waitMs: waitQuery("How long to wait while there is nothing else than that"),
    }),
  },
  responses: { 200: jsonResponse("The state now", WorkerStatus), ...problems(404) },
});

/** What becomes of versions of workers. */
export function workerStateRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const { dispatcher, hosts, signal } = context;
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(watchState, async (c) => {
    const { name } = c.req.valid("param");
    const { version, after, waitMs } = c.req.valid("query");
    const read = await statusReader(context, name, version);
    using watch = new Watch((listener) => {
      const stack = new DisposableStack();
      stack.use(dispatcher.onReadiness((family) => family === read.family && listener(name)));
      stack.use(hosts.onChange(listener));
      return stack;
    }, name);
    const over = AbortSignal.any([signal, c.req.raw.signal]);
    const isNew = ({ seen }: WorkerStatus) => seen !== after;
    const status = await readUntil(watch, read, isNew, { waitMs, signal: over });
    return c.json(status, 200);
  });
  return app;
}

/**
 * Reads what has become of a version, which itself is read from the store but once: it may have
 * megabytes of code.
 *
 * @throws FlurryError WORKER_NOT_FOUND, then and later
 */
async function statusReader(
  { store, hosts, dispatcher }: Pick<GatewayContext, "store" | "hosts" | "dispatcher">,
  name: string,
  asked: number | undefined,
): Promise<(() => Promise<WorkerStatus>) & { family: string }> {
  const now = await hosts.worker(name);
  const isCurrent = asked === undefined || asked === now?.version;
  const worker = isCurrent ? now : await store.workers.get(name, asked);
  if (!worker) throw notFound(name, asked);
  const { version, spec } = worker;
  const read = async () => {
    const current = await hosts.worker(name);
    if (!current) throw notFound(name, asked);
    const status = { name, version, current: current.version === version, ...readinessOf(dispatcher, spec) };
    const seen = createHash("sha256").update(JSON.stringify(status)).digest("base64url").slice(0, 22);
    return { ...status, seen };
  };
  return Object.assign(read, { family: familyOf(spec) });
}
