import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { JobEvent, LogChunk, TaskResult } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { eventStream, logStream, resultStream } from "./job-streams.ts";
import { JobPath, TaskIndex } from "./jobs-routes.ts";
import { problems, streamResponse } from "./openapi.ts";
import { ownJob } from "./own-job.ts";
import { type Pieces, pagedBody } from "./paged-body.ts";

const tags = ["jobs"];
const Id = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const Follow = z
  .enum(["true", "false"])
  .default("false")
  .meta({ description: "Wait for more until the job has ended; an empty line now and then says nothing" });

const streamEvents = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/events",
  operationId: "streamEvents",
  tags,
  summary: "Follow what becomes of a job, as Server-Sent Events",
  description:
    "Each message has the event's number as `id`, its type as `event`, and a JobEvent as `data`. " +
    "The stream ends when the job has ended and all its events have been sent; a job that is retried goes on " +
    "with new events, so ask again with the last id. A comment is sent after 5 s of silence.",
  middleware: requireScope("read"),
  request: {
    params: JobPath,
    query: z.object({
      after: Id.optional().meta({ description: "Only events after this id" }),
      follow: z
        .enum(["true", "false"])
        .default("true")
        .meta({ description: "`false` to get what has happened up to now" }),
    }),
    headers: z.object({
      "last-event-id": Id.optional().meta({ description: "As `after`, which it overrides" }),
    }),
  },
  responses: {
    200: streamResponse("The events", { "text/event-stream": JobEvent }),
    ...problems(404),
  },
});

const streamResults = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/results",
  operationId: "streamResults",
  tags,
  summary: "Read how a job's tasks ended, one TaskResult a line",
  middleware: requireScope("read"),
  request: {
    params: JobPath,
    query: z
      .object({
        order: z
          .enum(["index", "completion"])
          .default("index")
          .meta({ description: "As submitted, up to the first task that has not ended; or as they ended" }),
        from: TaskIndex.optional().meta({ description: "With order=index: only tasks from this index on" }),
        after: Id.optional().meta({
          description: "With order=completion: only tasks that ended after the one with this `ended`",
        }),
        follow: Follow,
      })
      .refine(({ order, from }) => order === "index" || from === undefined, {
        path: ["from"],
        message: "is for order=index; with order=completion a list goes on by after",
      })
      .refine(({ order, after }) => order === "completion" || after === undefined, {
        path: ["after"],
        message: "is for order=completion; with order=index a list goes on by from",
      }),
  },
  responses: {
    200: streamResponse("Results", { "application/x-ndjson": TaskResult }),
    ...problems(404),
  },
});

const streamLogs = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/logs",
  operationId: "streamLogs",
  tags,
  summary: "Read what a job's tasks printed, one LogChunk a line, or as text",
  middleware: requireScope("read"),
  request: {
    params: JobPath,
    query: z.object({
      task: TaskIndex.optional(),
      after: Id.default(0).meta({ description: "Only pieces after this id" }),
      follow: Follow,
      format: z
        .enum(["ndjson", "text"])
        .optional()
        .meta({ description: "@default by Accept: text for text/plain, else ndjson" }),
    }),
  },
  responses: {
    200: streamResponse("What was printed", {
      "application/x-ndjson": LogChunk,
      "text/plain": z.string(),
    }),
    ...problems(404),
  },
});

/** What a job tells while it runs, and what it has left as text. */
export function jobStreamRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(streamEvents, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    const query = c.req.valid("query");
    const after = c.req.valid("header")["last-event-id"] ?? query.after ?? 0;
    const pieces = eventStream(
      context,
      { id: job.id, reader: c.var.principal },
      { after, follow: query.follow === "true" },
    );
    return streamed(context, c, "text/event-stream", pieces);
  });

  app.openapi(streamResults, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    const { order, from, after, follow } = c.req.valid("query");
    const first = order === "index" ? from : after;
    const pieces = resultStream(
      context,
      { id: job.id, reader: c.var.principal },
      { order, after: first, follow: follow === "true" },
    );
    return streamed(context, c, "application/x-ndjson", pieces);
  });

  app.openapi(streamLogs, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    const { task, after, follow, format } = c.req.valid("query");
    const text = format === undefined ? prefersText(c.req.header("accept")) : format === "text";
    const pieces = logStream(
      context,
      { id: job.id, reader: c.var.principal },
      { task, after, follow: follow === "true", text },
    );
    return streamed(context, c, text ? "text/plain; charset=utf-8" : "application/x-ndjson", pieces);
  });

  return app;
}

function streamed(context: GatewayContext, c: Context<GatewayEnv>, type: string, pieces: Pieces): Response {
  c.header("Content-Type", type);
  // nginx holds streams back without it.
  c.header("X-Accel-Buffering", "no");
  return c.body(pagedBody(pieces, context.signal), 200);
}

/** Whether a reader names text/plain and not NDJSON. */
function prefersText(accept: string | undefined): boolean {
  return /\btext\/plain\b/i.test(accept ?? "") && !/\bapplication\/x-ndjson\b/i.test(accept ?? "");
}
