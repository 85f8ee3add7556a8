import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { Name, ScheduledRun, ScheduledTrigger } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";

const callScheduled = createRoute({
  method: "post",
  path: "/v1/workers/{name}/scheduled",
  operationId: "callScheduled",
  tags: ["workers"],
  summary: "Call scheduled() of a JS worker now",
  description:
    "Answers when it is over, at most 15 minutes later, and with 200 also if it has failed: `outcome` and `error` " +
    "say so. A problem says that it was not called. Calls at the times of the worker's crons go on beside it.",
  middleware: requireScope("submit"),
  request: { params: z.object({ name: Name }), body: jsonBody(ScheduledTrigger) },
  responses: {
    200: jsonResponse("It has been called", ScheduledRun),
    ...problems(404, 408, 413, 415, 422, 502, 504, 507),
  },
});

/** Events of a schedule, by hand. */
export function workerScheduledRoutes({ schedules }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(callScheduled, async (c) => {
    const { name } = c.req.valid("param");
    const { cron } = c.req.valid("json");
    return c.json(await schedules.trigger(name, cron, c.req.raw.signal), 200);
  });
  return app;
}
