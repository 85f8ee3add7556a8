import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { FlurryError } from "../../errors/errors.ts";
import { Name, WorkerLogPage } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems, waitQuery } from "./openapi.ts";
import { readUntil, Watch } from "./watch.ts";

const readLogs = createRoute({
  method: "get",
  path: "/v1/workers/{name}/logs",
  operationId: "readWorkerLogs",
  tags: ["workers"],
  summary: "Read what a JS worker has printed of late while it answered requests",
  description:
    "The last 1000 records are kept, as long as the gateway runs. To follow, ask again with the last `id` as `after`.",
  middleware: requireScope("read"),
  request: {
    params: z.object({ name: Name }),
    query: z.object({
      after: z.coerce.number().int().min(0).default(0).meta({ description: "Only records after this id" }),
      waitMs: waitQuery("How long to wait for a record when there is none"),
    }),
  },
  responses: { 200: jsonResponse("Records, oldest first", WorkerLogPage), ...problems(404) },
});

/** What workers print. */
export function workerLogsRoutes({ hosts, runtime, signal }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(readLogs, async (c) => {
    const { name } = c.req.valid("param");
    const { after, waitMs } = c.req.valid("query");
    if ((await hosts.worker(name)) === undefined) {
      throw new FlurryError("WORKER_NOT_FOUND", `There is no worker "${name}"`);
    }
    const logs = runtime.requests?.logs;
    const over = AbortSignal.any([signal, c.req.raw.signal]);
    if (!logs) return c.json({ items: [] }, 200);
    using watch = new Watch(logs.onAppend.bind(logs), name);
    const isEnough = (found: readonly unknown[]) => found.length > 0;
    const items = await readUntil(watch, () => logs.read(name, after), isEnough, { waitMs, signal: over });
    return c.json({ items }, 200);
  });
  return app;
}
