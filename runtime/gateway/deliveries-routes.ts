import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { DeliveryPage, JobId } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems } from "./openapi.ts";
import { ownJob } from "./own-job.ts";

const listDeliveries = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/deliveries",
  operationId: "listDeliveries",
  tags: ["jobs"],
  summary: "List what was sent to a job's webhook, with every attempt",
  middleware: requireScope("read"),
  request: { params: z.object({ id: JobId }) },
  responses: { 200: jsonResponse("All deliveries, oldest first", DeliveryPage), ...problems(404) },
});

/** What became of a job's webhooks. */
export function deliveriesRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(listDeliveries, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    return c.json({ items: await context.store.deliveries.list(job.id) }, 200);
  });
  return app;
}
