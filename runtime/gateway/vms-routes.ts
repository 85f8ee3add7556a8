import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { Vm, VmCreate, VmFork, VmForkResults, VmId, VmPage, VmsEnded, WorkerSpec } from "../api/mod.ts";
import type { VmSource } from "../workers/vms/port.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";
import { makerOf, ownerOfVm, shownOutcome, shownVm, vmsOf, whose } from "./own-vms.ts";
import { ofVm } from "./vm-errors.ts";

const tags = ["vms"];

export const VmPath = z.object({ id: VmId });

const listVms = createRoute({
  method: "get",
  path: "/v1/vms",
  operationId: "listVms",
  tags,
  summary: "List the VMs that run: those by hand, those of tasks, and what was forked from them",
  description:
    "A key that is not an admin's sees its own only. VMs that answer requests to workers are not among them.",
  middleware: requireScope("read"),
  responses: { 200: jsonResponse("All VMs", VmPage), ...problems(501) },
});

const createVm = createRoute({
  method: "post",
  path: "/v1/vms",
  operationId: "createVm",
  tags,
  summary: "Make a VM of an image, of a worker's parent, or of a checkpoint",
  description:
    "Answers when it runs and has proven who it is; the first of an image may take as long as its build and boot. " +
    "It runs until it is ended, or the gateway ends. Who goes away before the answer gets none.",
  middleware: requireScope("submit"),
  request: { body: jsonBody(VmCreate) },
  responses: {
    201: {
      ...jsonResponse("It runs", Vm),
      headers: { Location: { description: "Path of the VM", schema: { type: "string" } } },
    },
    ...problems(404, 408, 409, 413, 415, 422, 501, 502, 504, 507),
  },
});

const getVm = createRoute({
  method: "get",
  path: "/v1/vms/{id}",
  operationId: "getVm",
  tags,
  summary: "See a VM",
  middleware: requireScope("read"),
  request: { params: VmPath },
  responses: { 200: jsonResponse("The VM", Vm), ...problems(404, 501) },
});

const endVm = createRoute({
  method: "delete",
  path: "/v1/vms/{id}",
  operationId: "endVm",
  tags,
  summary: "End a VM, and all that were forked from it",
  description: "Answers when they are gone. A task's own VM is not ended: its job is canceled.",
  middleware: requireScope("submit"),
  request: { params: VmPath },
  responses: { 200: jsonResponse("Those that have ended", VmsEnded), ...problems(404, 501) },
});

const forkVm = createRoute({
  method: "post",
  path: "/v1/vms/{id}/fork",
  operationId: "forkVm",
  tags,
  summary: "Fork a VM, which goes on",
  description:
    "Answers when each child runs and has proven who it is, or has failed: `items` says which, in the order of `index`. " +
    "There may be fewer than `count`; where there is room for none it is a problem. What runs in the VM goes on in " +
    "each child too. Children belong to the VM's owner, and are gone with it.",
  middleware: requireScope("submit"),
  request: { params: VmPath, body: jsonBody(VmFork) },
  responses: {
    200: jsonResponse("How each child came out", VmForkResults),
    ...problems(404, 408, 413, 415, 501, 504, 507),
  },
});

/** VMs that are made, forked and ended by hand. */
export function vmsRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(listVms, (c) => c.json({ items: vmsOf(context).list(whose(c)).map(shownVm) }, 200));

  app.openapi(createVm, async (c) => {
    const vms = vmsOf(context);
    const signal = AbortSignal.any([c.req.raw.signal, context.signal]);
    const source = await sourceOf(context, c.req.valid("json"));
    const vm = await vms.create(source, makerOf(c), signal).catch((error) => {
      throw ofVm(error);
    });
    c.header("Location", `/v1/vms/${vm.id}`);
    return c.json(shownVm(vm), 201);
  });

  app.openapi(getVm, (c) => {
    return c.json(shownVm(vmsOf(context).get(c.req.valid("param").id, whose(c))), 200);
  });

  app.openapi(endVm, async (c) => {
    return c.json({ ids: await vmsOf(context).kill(c.req.valid("param").id, whose(c)) }, 200);
  });

  app.openapi(forkVm, async (c) => {
    const { id } = c.req.valid("param");
    const { count } = c.req.valid("json");
    const signal = AbortSignal.any([c.req.raw.signal, context.signal]);
    const owner = await ownerOfVm(context, c, id);
    const outcomes = await vmsOf(context)
      .fork(id, count, owner, signal)
      .catch((error) => {
        throw ofVm(error);
      });
    return c.json({ items: outcomes.map((each) => shownOutcome(each, c.var.requestId)) }, 200);
  });

  return app;
}

/** @throws FlurryError WORKER_NOT_FOUND */
async function sourceOf({ jobs }: GatewayContext, wanted: VmCreate): Promise<VmSource> {
  if ("checkpoint" in wanted) return wanted;
  const { worker } = wanted;
  // A worker needs a command; a VM by hand runs none until it is told to.
  const named = typeof worker === "string" ? worker : WorkerSpec.parse({ ...worker, command: ["true"] });
  const { spec, family } = await jobs.resolve(named);
  return { spec, family };
}
