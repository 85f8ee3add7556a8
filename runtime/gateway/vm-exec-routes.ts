import { createRoute, OpenAPIHono } from "@hono/zod-openapi";
import type { Context } from "hono";
import { VmExec, VmExecLine, VmExecResult } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonBody, problems, streamResponse } from "./openapi.ts";
import { vmsOf, whose } from "./own-vms.ts";
import { pagedBody } from "./paged-body.ts";
import { ofVm } from "./vm-errors.ts";
import { execLines, runToEnd } from "./vm-exec.ts";
import { VmPath } from "./vms-routes.ts";

const NDJSON = "application/x-ndjson";

const execInVm = createRoute({
  method: "post",
  path: "/v1/vms/{id}/exec",
  operationId: "execInVm",
  tags: ["vms"],
  summary: "Run a program in a VM",
  description:
    `Answers when it has ended, with the first MiB of each output. With \`Accept: ${NDJSON}\` it answers at once, with ` +
    "what is printed as it is printed, one VmExecLine a line, and how the program ended as the last one; an empty line " +
    "now and then says nothing. Who goes away, or whose key does, has it killed.",
  middleware: requireScope("submit"),
  request: { params: VmPath, body: jsonBody(VmExec) },
  responses: {
    200: streamResponse("It has ended, however it did; or it runs", {
      "application/json": VmExecResult,
      [NDJSON]: VmExecLine,
    }),
    ...problems(404, 408, 413, 415, 501, 504),
  },
});

/** Programs in VMs. */
export function vmExecRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();
  app.openapi(execInVm, (c) => exec(context, c, c.req.valid("param").id, c.req.valid("json")));
  return app;
}

async function exec(
  context: GatewayContext,
  c: Context<GatewayEnv>,
  id: string,
  { argv, env, cwd, stdin, timeoutMs }: VmExec,
): Promise<Response> {
  const stopped = new AbortController();
  const signal = AbortSignal.any([stopped.signal, c.req.raw.signal, context.signal]);
  try {
    const options = { env, cwd, timeoutMs, stdin: stdin !== undefined, signal };
    const program = await vmsOf(context).exec(id, argv, options, whose(c));
    if (!new RegExp(`\\b${NDJSON}\\b`, "i").test(c.req.header("accept") ?? "")) {
      return c.json(await runToEnd(program, stdin), 200);
    }
    const asked = { program, stdin, reader: c.var.principal, requestId: c.var.requestId };
    c.header("Content-Type", NDJSON);
    // nginx holds streams back without it.
    c.header("X-Accel-Buffering", "no");
    return c.body(
      pagedBody(
        execLines(context, asked, () => stopped.abort()),
        context.signal,
      ),
      200,
    );
  } catch (error) {
    throw ofVm(error);
  }
}
