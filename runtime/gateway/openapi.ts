import { type OpenAPIHono, z } from "@hono/zod-openapi";
import { Problem } from "../api/mod.ts";
import type { GatewayEnv } from "./context.ts";

/** What any operation may answer in place of what was asked for. */
const ALWAYS = [400, 401, 403, 429, 500, 503] as const;

const meanings: Readonly<Record<number, string>> = {
  400: "The request is not valid",
  401: "The request shows no key that is known",
  403: "The key may not do this",
  404: "There is no such thing, or it is another key's",
  408: "The body did not arrive in time",
  409: "Not in the state that it is in",
  413: "The body is too large",
  415: "The body's media type is not taken here",
  416: "The range is outside of the content",
  422: "The request cannot be done as it is",
  429: "Too much at a time; Retry-After says when to ask again",
  500: "The gateway failed",
  501: "This gateway cannot do it",
  503: "The gateway is ending; Retry-After says when to ask again",
  507: "The gateway's disk is full",
};

/** The responses of an operation that are problems: those that any may have, and these. */
export function problems<S extends number>(
  ...more: S[]
): Record<S | (typeof ALWAYS)[number], { description: string; content: ProblemContent }> {
  const statuses = [...new Set<number>([...ALWAYS, ...more])].sort((a, b) => a - b);
  const entries = statuses.map((status) => [
    status,
    {
      description: meanings[status] ?? "A problem",
      content: { "application/problem+json": { schema: Problem } },
    },
  ]);
  return Object.fromEntries(entries);
}
type ProblemContent = { "application/problem+json": { schema: typeof Problem } };

/** A response of JSON. */
export function jsonResponse<T extends z.ZodType>(description: string, schema: T) {
  return { description, content: { "application/json": { schema } } };
}

/** A response that is made while it is read; `schemas` are those of its entries, by media type. */
export function streamResponse(description: string, schemas: Record<string, z.ZodType>) {
  const content: Record<string, { schema: z.ZodType }> = {};
  for (const [type, schema] of Object.entries(schemas)) content[type] = { schema };
  return { description, content };
}

/** A request's body of JSON, which must be there. */
export function jsonBody<T extends z.ZodType>(schema: T) {
  return { required: true, content: { "application/json": { schema } } };
}

/** The document of all operations of an app. */
export function documentOf(app: OpenAPIHono<GatewayEnv>) {
  return app.getOpenAPI31Document({
    openapi: "3.1.0",
    info: {
      title: "Flurry",
      version: "1",
      description:
        "Runs the tasks of jobs in forked virtual machines. Errors are problems (RFC 9457) with a stable `code`. " +
        "Lists have a cursor; streams can be taken up again after the last id that was read.",
      license: { name: "Apache-2.0" },
    },
    security: [{ key: [] }, {}],
    tags: [
      { name: "jobs", description: "Submit jobs and see what becomes of them" },
      { name: "workers", description: "What runs a job's tasks" },
      { name: "secrets", description: "Values that tasks get and nobody reads" },
      { name: "keys", description: "Who may ask" },
      { name: "vms", description: "VMs that run, forks of them, and what they have proven" },
      { name: "hosts", description: "Machines that run children" },
      { name: "gateway", description: "The gateway itself" },
    ],
  });
}

/** Longest time that a reader is kept waiting for what comes next, in ms. */
const MOST_WAIT_MS = 30_000;

/** A parameter that says how long an answer may wait for news, in ms; by default it does not. */
export function waitQuery(description: string) {
  return z.coerce.number().int().min(0).max(MOST_WAIT_MS).default(0).meta({ description });
}
