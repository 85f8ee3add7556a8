import { createHash } from "node:crypto";
import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { FlurryError } from "../../errors/errors.ts";
import { imageOf, Job, JobHead, JobSubmit, Validated } from "../api/mod.ts";
import type { NewTasks } from "../jobs/jobs.ts";
import type { StoredJob } from "../jobs/ports.ts";
import { requireScope } from "./auth.ts";
import { mediaType, refuseEncodings } from "./body.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { NdjsonBody } from "./ndjson.ts";
import { jsonBody, jsonResponse, problems } from "./openapi.ts";
import { InvalidRequest } from "./problem.ts";

const NDJSON = "application/x-ndjson";

const SubmitHeaders = z.object({
  "idempotency-key": z
    .string()
    .min(1)
    .max(255)
    .regex(/^[\x20-\x7e]*$/, "must be printable ASCII")
    .optional()
    .meta({
      description:
        "Names this submission for 24 h. The same body again gives the same job, and `Idempotent-Replayed: true`; another body is refused",
    }),
});

const submitJob = createRoute({
  method: "post",
  path: "/v1/jobs",
  operationId: "submitJob",
  tags: ["jobs"],
  summary: "Submit a job",
  description:
    "As JSON, or as NDJSON: the first line describes the job (JobHead), each line after it is the input of one task. " +
    "NDJSON is read as fast as it is stored, so a million inputs need no memory here; the job exists when all of it has arrived.",
  request: {
    headers: SubmitHeaders,
    body: {
      required: true,
      content: { "application/json": { schema: JobSubmit }, [NDJSON]: { schema: JobHead } },
    },
  },
  responses: {
    202: {
      ...jsonResponse("The job has been stored", Job),
      headers: {
        Location: { description: "Path of the job", schema: { type: "string" } },
        "Idempotent-Replayed": {
          description: "`true` when this is the job of an earlier submission",
          schema: { type: "string" },
        },
      },
    },
    ...problems(404, 408, 413, 415, 422, 507),
  },
});

const validateJob = createRoute({
  method: "post",
  path: "/v1/jobs:validate",
  operationId: "validateJob",
  tags: ["jobs"],
  summary: "Check a job without storing it",
  middleware: requireScope("submit"),
  request: { body: jsonBody(JobSubmit) },
  responses: {
    200: jsonResponse("It could be submitted", Validated),
    ...problems(404, 408, 413, 415, 422),
  },
});

/** How jobs come in. */
export function submitRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const app = new OpenAPIHono<GatewayEnv>();

  // Described apart from how it is matched: a stream cannot be checked before the handler reads it.
  app.openAPIRegistry.registerPath(submitJob);
  app.post("/v1/jobs", requireScope("submit"), async (c) => {
    const { stored, replayed } = await (mediaType(c.req.header("content-type")) === NDJSON
      ? submitLines(context, c)
      : submitJson(context, c));
    c.header("Location", `/v1/jobs/${stored.job.id}`);
    if (replayed) c.header("Idempotent-Replayed", "true");
    return c.json(stored.job, 202);
  });

  app.openapi(validateJob, async (c) => {
    const { tasks, ...head } = c.req.valid("json");
    checkWebhook(context, head);
    const { spec, worker } = await context.jobs.validate(head, c.var.principal.owner);
    const count = "count" in tasks ? tasks.count : tasks.inputs.length;
    return c.json({ valid: true as const, tasks: count, worker: { ...worker, image: imageOf(spec) } }, 200);
  });

  return app;
}

type Submitted = Promise<{ stored: StoredJob; replayed: boolean }>;

async function submitJson(context: GatewayContext, c: Context<GatewayEnv>): Submitted {
  const type = mediaType(c.req.header("content-type"));
  if (type !== "application/json") {
    const what = type === "" ? "without a media type" : `as ${type.slice(0, 100)}`;
    throw new FlurryError("MEDIA_TYPE_UNSUPPORTED", `A job is not taken ${what}`, {
      hint: `send it with Content-Type: application/json, or ${NDJSON}`,
    });
  }
  const text = await c.req.text();
  if (text === "") throw empty();
  const { tasks, ...head } = checked(JobSubmit, await c.req.json(), "body");
  return submit(context, c, head, tasks, () => createHash("sha256").update(text).digest("hex"));
}

async function submitLines(context: GatewayContext, c: Context<GatewayEnv>): Submitted {
  const { body } = c.req.raw;
  if (body === null) throw empty();
  refuseEncodings(c.req.header("content-encoding"), c.req.header("content-type"));
  const { bodyBytes, streamBytes, bodySilenceMs } = context.limits;
  const limits = { headBytes: bodyBytes, bodyBytes: streamBytes, silenceMs: bodySilenceMs };
  await using lines = new NdjsonBody(body, limits);
  const head = checked(JobHead, await lines.first(), "line 1");
  return await submit(context, c, head, { inputs: lines.rest() }, () => lines.digest());
}

async function submit(
  context: GatewayContext,
  c: Context<GatewayEnv>,
  head: JobHead,
  tasks: NewTasks,
  bodyHash: () => string,
): Submitted {
  checkWebhook(context, head);
  const { owner, limits } = c.var.principal;
  const headers = checked(SubmitHeaders, c.req.header(), "header");
  return context.jobs.submit(head, tasks, {
    owner,
    limits,
    idempotencyKey: headers["idempotency-key"],
    bodyHash,
    traceparent: c.var.traceparent,
    signal: context.signal,
  });
}

function empty(): FlurryError {
  return new FlurryError("BAD_ARGUMENT", "The body is empty: it is to describe the job");
}

/** @throws FlurryError WEBHOOK_FORBIDDEN */
function checkWebhook({ guard }: GatewayContext, { webhook }: JobHead): void {
  if (webhook !== undefined) guard.check(webhook.url);
}

function checked<T extends z.ZodType>(schema: T, value: unknown, what: string): z.output<T> {
  const result = schema.safeParse(value);
  if (!result.success) throw new InvalidRequest(what, result.error);
  return result.data;
}
