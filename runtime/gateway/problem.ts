import { getLogger } from "@logtape/logtape";
import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import { z } from "zod";
import { describeError, FlurryError } from "../../errors/errors.ts";
import type { Problem } from "../api/mod.ts";
import type { GatewayEnv } from "./context.ts";

const logger = getLogger(["flurry", "gateway"]);

/** Seconds after which it may be worth while to ask again, by status. */
const RETRY_AFTER: Readonly<Record<number, number>> = { 429: 1, 503: 5, 507: 30 };
/** Answers that another try of the same request may not get. */
const RETRYABLE = new Set([408, 429, 502, 503, 504, 507]);
/** Most places of a body that one problem names. */
const MAX_ERRORS = 20;

/** A body, a query or a path is not as its schema says. */
export class InvalidRequest extends FlurryError {
  readonly errors: { path: string; message: string }[];

  /** @param part - what the issues are of, such as "body" */
  constructor(part: string, error: z.ZodError) {
    const errors = flatten(error.issues, part).slice(0, MAX_ERRORS);
    const [first] = errors;
    const rest = errors.length > 1 ? `, and ${errors.length - 1} more` : "";
    super(
      "BAD_ARGUMENT",
      `The ${part} is not valid: ${first?.path ?? part}: ${first?.message ?? ""}${rest}`,
      {
        hint: "GET /openapi.json describes what is accepted",
      },
    );
    this.errors = errors;
  }
}

/**
 * The problem (RFC 9457) of any thrown value. What is no error of ours keeps its message to itself: that
 * may tell of files or of code.
 *
 * @param otherStatus - in place of the code's own
 */
export function problemOf(error: unknown, requestId: string, otherStatus?: number): Problem {
  const known = ourError(error);
  const { code, message, hint, httpStatus: ownStatus } = describeError(known);
  const httpStatus = otherStatus ?? ownStatus;
  return {
    type: "about:blank",
    title: titleOf(code),
    status: httpStatus,
    detail: message,
    code,
    ...(hint === undefined ? {} : { hint }),
    requestId,
    retryable: RETRYABLE.has(httpStatus),
    ...(known instanceof InvalidRequest ? { errors: known.errors } : {}),
  };
}

/** Answers with the problem of an error, and logs what is not the asker's fault. */
export function answerProblem(c: Context<GatewayEnv>, error: unknown, status?: number): Response {
  const problem = problemOf(error, c.var.requestId, status);
  if (problem.status >= 500) {
    const { method, path } = c.req;
    logger.error("{method} {path}: {code}", {
      method,
      path,
      code: problem.code,
      requestId: problem.requestId,
      error,
    });
  }
  const asked = error instanceof FlurryError ? error.retryAfterSeconds : undefined;
  const retryAfter = asked ?? RETRY_AFTER[problem.status];
  if (retryAfter !== undefined) c.header("Retry-After", String(Math.ceil(retryAfter)));
  c.header("Content-Type", "application/problem+json");
  // hono's types know no 499, which ABORTED has.
  return c.body(JSON.stringify(problem), problem.status as 500);
}

/** Answers what no route and no middleware has caught. */
export function bareProblem(error: unknown): Response {
  const problem = problemOf(error, crypto.randomUUID());
  logger.error("A request failed outside of the routes: {error}", { requestId: problem.requestId, error });
  const headers = { "content-type": "application/problem+json", "x-request-id": problem.requestId };
  return new Response(JSON.stringify(problem), { status: problem.status, headers });
}

function ourError(error: unknown): FlurryError {
  const store = storeProblem(error);
  if (store) return store;
  if (error instanceof FlurryError) return error.code === "INTERNAL" ? internal() : error;
  if (error instanceof HTTPException) return ofHono(error);
  if (error instanceof z.ZodError) return new InvalidRequest("request", error);
  if (error instanceof DOMException && error.name === "AbortError") {
    return new FlurryError("ABORTED", "The request was given up");
  }
  return internal();
}

/** What the store fails of names its files, which are the log's to tell and not the asker's to know. */
function storeProblem(error: unknown): FlurryError | undefined {
  switch (describeError(error).code) {
    case "NO_SPACE":
      return new FlurryError("NO_SPACE", "The gateway's disk is full", {
        hint: "ask again when it has space; nothing that it has accepted is lost",
      });
    case "STORE_FAILED":
      return new FlurryError("STORE_FAILED", "The gateway's store failed", {
        hint: "its log has the reason under the request's id",
      });
    default:
      return undefined;
  }
}

function internal(): FlurryError {
  return new FlurryError("INTERNAL", "The gateway failed at this request", {
    hint: "its log has the reason under the request's id",
  });
}

/** What hono itself refuses. */
function ofHono(error: HTTPException): FlurryError {
  switch (error.status) {
    case 400:
      return new FlurryError("BAD_ARGUMENT", error.message);
    case 413:
      return new FlurryError("BODY_TOO_LARGE", error.message);
    case 415:
      return new FlurryError("MEDIA_TYPE_UNSUPPORTED", "The body's media type is not taken here", {
        hint: "send application/json",
      });
    default:
      return internal();
  }
}

/** `JOB_NOT_FOUND` as "Job not found". */
function titleOf(code: string): string {
  const words = code.toLowerCase().replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Issues with their paths; of a union, those of the branch that came closest. */
function flatten(issues: readonly z.core.$ZodIssue[], at: string): { path: string; message: string }[] {
  return issues.flatMap((issue) => {
    const path = [at, ...issue.path.map(String)].join(".");
    if (issue.code === "invalid_union" && issue.errors.length > 0) {
      const [closest] = [...issue.errors].sort((a, b) => depth(b) - depth(a) || a.length - b.length);
      return flatten(closest ?? [], path);
    }
    return [{ path: path.slice(0, 200), message: issue.message.slice(0, 500) }];
  });
}

function depth(issues: readonly z.core.$ZodIssue[]): number {
  return Math.max(0, ...issues.map((issue) => issue.path.length));
}
