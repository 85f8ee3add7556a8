import { createRoute, OpenAPIHono } from "@hono/zod-openapi";
import { HostPage } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems } from "./openapi.ts";

const listHosts = createRoute({
  method: "get",
  path: "/v1/hosts",
  operationId: "listHosts",
  tags: ["hosts"],
  summary: "List the machines that run children, with what is set aside there and why",
  middleware: requireScope("read"),
  responses: { 200: jsonResponse("All hosts", HostPage), ...problems() },
});

/** Machines that run children. */
export function hostsRoutes({ store }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(listHosts, async (c) => c.json({ items: await store.hosts.list() }, 200));
  return app;
}
