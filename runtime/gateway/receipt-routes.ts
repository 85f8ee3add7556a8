import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { FlurryError } from "../../errors/errors.ts";
import { Receipt, SignedReceipt, VmId } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems } from "./openapi.ts";

const getReceipt = createRoute({
  method: "get",
  path: "/v1/vms/{id}/receipt",
  operationId: "getReceipt",
  tags: ["vms"],
  summary: "Show what a VM has proven about its identity before any user code ran in it",
  middleware: requireScope("read"),
  request: { params: z.object({ id: VmId }) },
  responses: { 200: jsonResponse("Its receipt, signed", SignedReceipt), ...problems(404) },
});

/** What VMs have proven. An id is of random bits: who knows it has it from the VM. */
export function receiptRoutes({ receipts }: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(getReceipt, async (c) => {
    const { id } = c.req.valid("param");
    const found = await receipts.find(id);
    if (!found) {
      throw new FlurryError("RECEIPT_NOT_FOUND", `There is no receipt of ${id}`, {
        hint: "the newest 100000 are kept; a VM that has not proven its identity has none: see the log",
      });
    }
    const { payload, signature, publicKey } = found;
    return c.json({ receipt: Receipt.parse(JSON.parse(payload)), payload, signature, publicKey }, 200);
  });
  return app;
}
