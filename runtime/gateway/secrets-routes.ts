import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { FlurryError } from "../../errors/errors.ts";
import { Name, Secret, SecretPage, SecretPut } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";

const tags = ["secrets"];
const params = z.object({ name: Name });

const putSecret = createRoute({
  method: "put",
  path: "/v1/secrets/{name}",
  operationId: "putSecret",
  tags,
  summary: "Set a secret",
  description:
    "Workers name it in `secrets`; tasks that begin from now on get this value. No answer ever shows it. " +
    "With `keys` only jobs of these keys get it, and workers that they deployed.",
  middleware: requireScope("admin"),
  request: { params, body: jsonBody(SecretPut) },
  responses: { 200: jsonResponse("It is stored", Secret), ...problems(408, 413, 415, 507) },
});

const listSecrets = createRoute({
  method: "get",
  path: "/v1/secrets",
  operationId: "listSecrets",
  tags,
  summary: "List the names of the secrets",
  middleware: requireScope("admin"),
  responses: { 200: jsonResponse("All secrets", SecretPage), ...problems() },
});

const deleteSecret = createRoute({
  method: "delete",
  path: "/v1/secrets/{name}",
  operationId: "deleteSecret",
  tags,
  summary: "Remove a secret",
  description: "Tasks that need it fail from now on.",
  middleware: requireScope("admin"),
  request: { params },
  responses: { 204: { description: "It is gone" }, ...problems(404, 507) },
});

/** Values that tasks get and nobody reads. */
export function secretsRoutes({ store }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(putSecret, async (c) => {
    return c.json(await store.secrets.put(c.req.valid("param").name, c.req.valid("json")), 200);
  });

  app.openapi(listSecrets, async (c) => c.json({ items: await store.secrets.list() }, 200));

  app.openapi(deleteSecret, async (c) => {
    const { name } = c.req.valid("param");
    if (!(await store.secrets.remove(name))) {
      throw new FlurryError("SECRET_NOT_FOUND", `There is no secret "${name}"`);
    }
    return c.body(null, 204);
  });

  return app;
}
