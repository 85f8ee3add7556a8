import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { Checkpoint, CheckpointCreate, CheckpointPage, Name } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";
import { ownCheckpoint, ownerOfVm, shownCheckpoint, vmsOf, whose } from "./own-vms.ts";
import { ofVm } from "./vm-errors.ts";
import { VmPath } from "./vms-routes.ts";

const tags = ["vms"];
const params = z.object({ name: Name });

const createCheckpoint = createRoute({
  method: "post",
  path: "/v1/vms/{id}/checkpoints",
  operationId: "createCheckpoint",
  tags,
  summary: "Keep a VM's state under a name",
  description:
    "The VM goes on. VMs can be made of what is kept, also when the VM is gone and the gateway was started again. " +
    "It belongs to the VM's owner, of whose checkpoints no other has that name.",
  middleware: requireScope("submit"),
  request: { params: VmPath, body: jsonBody(CheckpointCreate) },
  responses: {
    201: {
      ...jsonResponse("It is on disk", Checkpoint),
      headers: { Location: { description: "Path of the checkpoint", schema: { type: "string" } } },
    },
    ...problems(404, 408, 409, 413, 415, 501, 504, 507),
  },
});

const listCheckpoints = createRoute({
  method: "get",
  path: "/v1/checkpoints",
  operationId: "listCheckpoints",
  tags,
  summary: "List the checkpoints",
  description: "A key that is not an admin's sees its own only.",
  middleware: requireScope("read"),
  responses: { 200: jsonResponse("All checkpoints", CheckpointPage), ...problems(501) },
});

const getCheckpoint = createRoute({
  method: "get",
  path: "/v1/checkpoints/{name}",
  operationId: "getCheckpoint",
  tags,
  summary: "See a checkpoint",
  middleware: requireScope("read"),
  request: { params },
  responses: { 200: jsonResponse("The checkpoint", Checkpoint), ...problems(404, 501) },
});

const deleteCheckpoint = createRoute({
  method: "delete",
  path: "/v1/checkpoints/{name}",
  operationId: "deleteCheckpoint",
  tags,
  summary: "Remove a checkpoint",
  description: "VMs that were made of it go on.",
  middleware: requireScope("submit"),
  request: { params },
  responses: { 204: { description: "It is gone" }, ...problems(404, 501, 507) },
});

/** States of VMs that have names. */
export function checkpointRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(createCheckpoint, async (c) => {
    const { id } = c.req.valid("param");
    const { name } = c.req.valid("json");
    const signal = AbortSignal.any([c.req.raw.signal, context.signal]);
    const owner = await ownerOfVm(context, c, id);
    const made = await vmsOf(context)
      .checkpoint(id, name, owner, signal)
      .catch((error) => {
        throw ofVm(error);
      });
    c.header("Location", `/v1/checkpoints/${name}`);
    return c.json(shownCheckpoint(made), 201);
  });

  app.openapi(listCheckpoints, async (c) => {
    return c.json({ items: (await vmsOf(context).checkpoints(whose(c))).map(shownCheckpoint) }, 200);
  });

  app.openapi(getCheckpoint, async (c) => {
    return c.json(shownCheckpoint(await ownCheckpoint(context, c, c.req.valid("param").name)), 200);
  });

  app.openapi(deleteCheckpoint, async (c) => {
    const { name, owner } = await ownCheckpoint(context, c, c.req.valid("param").name);
    await vmsOf(context).removeCheckpoint(name, owner);
    return c.body(null, 204);
  });

  return app;
}
