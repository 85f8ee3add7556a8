import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import pLimit from "p-limit";
import { FlurryError } from "../../errors/errors.ts";
import { type Key, KeyCreate, KeyCreated, KeyPage } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { newKey } from "./keys.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";

const tags = ["keys"];

const createKey = createRoute({
  method: "post",
  path: "/v1/keys",
  operationId: "createKey",
  tags,
  summary: "Create a key",
  description:
    "The answer is the only one that shows the key. From the first key on, every request needs one; so the first " +
    "has to have the scope `admin`.",
  middleware: requireScope("admin"),
  request: { body: jsonBody(KeyCreate) },
  responses: { 201: jsonResponse("The key", KeyCreated), ...problems(408, 413, 415, 507) },
});

const listKeys = createRoute({
  method: "get",
  path: "/v1/keys",
  operationId: "listKeys",
  tags,
  summary: "List the keys, without what makes them keys",
  middleware: requireScope("admin"),
  responses: { 200: jsonResponse("All keys", KeyPage), ...problems() },
});

const deleteKey = createRoute({
  method: "delete",
  path: "/v1/keys/{id}",
  operationId: "deleteKey",
  tags,
  summary: "Remove a key",
  description:
    "The next request with it is refused. Its jobs go on. The last key with the scope `admin` stays: without it " +
    "nobody could create another, and without any key the gateway would be open to its whole machine.",
  middleware: requireScope("admin"),
  request: { params: z.object({ id: z.string().min(1).max(100).meta({ example: "0123456789abcdef" }) }) },
  responses: { 204: { description: "It is gone" }, ...problems(404, 409, 507) },
});

/** Who may ask. */
export function keysRoutes({ store }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  // Whether a key is the first or the last must still hold when it is stored or removed.
  const oneByOne = pLimit(1);

  app.openapi(createKey, async (c) => {
    const wanted = c.req.valid("json");
    const { id, key, hash } = newKey();
    const created = await oneByOne(async () => {
      if (!wanted.scopes.includes("admin") && (await store.keys.list()).length === 0) {
        throw new FlurryError("BAD_ARGUMENT", 'The first key lacks the scope "admin"', {
          hint: 'create one with the scope "admin" first: from then on every request needs a key',
        });
      }
      return store.keys.create({ ...wanted, scopes: [...new Set(wanted.scopes)], id, hash });
    });
    return c.json({ ...created, key }, 201);
  });

  app.openapi(listKeys, async (c) => c.json({ items: await store.keys.list() }, 200));

  app.openapi(deleteKey, async (c) => {
    const { id } = c.req.valid("param");
    await oneByOne(async () => {
      const keys = await store.keys.list();
      if (isLastAdmin(keys, id)) {
        throw new FlurryError("LAST_ADMIN_KEY", `The key ${id} is the last with the scope "admin"`, {
          hint: 'create another key with the scope "admin", and remove this one with it',
        });
      }
      if (!(await store.keys.remove(id))) throw new FlurryError("KEY_NOT_FOUND", `There is no key ${id}`);
    });
    return c.body(null, 204);
  });

  return app;
}

function isLastAdmin(keys: readonly Key[], id: string): boolean {
  const admins = keys.filter(({ scopes }) => scopes.includes("admin"));
  return admins.length === 1 && admins[0]?.id === id;
}
