import { z } from "zod";

/** Most tasks of a job. */
export const MAX_TASKS = 1_000_000;
/** Most bytes of one task's input, as JSON. */
export const MAX_INPUT_BYTES = 64 * 1024;
/** Most bytes of all files of a worker, decoded. */
export const MAX_FILE_BYTES = 16 * 1024 * 1024;

/** As a pattern, so that OpenAPI tells it. */
export const NO_NUL = /^[^\0]*$/;

/** A name that people give: of a worker or a secret. */
export const Name = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/, "must be 1 to 63 of a-z, 0-9 and inner -")
  .meta({ example: "render" });

/** A moment, as RFC 3339 in UTC. */
export const Time = z.iso.datetime().meta({ example: "2026-01-31T12:00:00.000Z" });

/** Name of an environment variable. */
export const Variable = z
  .string()
  .regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, "must be 1 to 128 letters, digits and _, and begin with no digit");

/** Names and values of environment variables. */
export const Environment = z
  .record(Variable, textOf(0, 32_768))
  .refine((env) => Object.keys(env).length <= 256, "has more than 256 variables");

/** A page of a list. */
export const PageQuery = z.object({
  limit: z.coerce
    .number()
    .int()
    .min(1)
    .max(1000)
    .default(100)
    .meta({ description: "Most items of the page" }),
  cursor: z.string().max(200).optional().meta({ description: "`next` of the page before" }),
});

/** RFC 9457: what every answer from 400 on has as its body. */
export const Problem = z
  .object({
    type: z.string().meta({ example: "about:blank" }),
    title: z.string(),
    status: z.int(),
    detail: z.string().meta({ description: "What happened, to what, and what to do" }),
    code: z.string().meta({ description: "Stable; errors/codes.ts has them all", example: "JOB_NOT_FOUND" }),
    hint: z.string().optional().meta({ description: "What to do" }),
    requestId: z.string(),
    retryable: z.boolean().meta({ description: "Whether the same request may succeed later" }),
    errors: z
      .array(z.object({ path: z.string(), message: z.string() }))
      .optional()
      .meta({ description: "Where a body or a query is not as it should be" }),
  })
  .meta({ id: "Problem" });
export type Problem = z.infer<typeof Problem>;

/** What a task, a job or a worker failed of. */
export const Failure = z
  .object({ code: z.string(), message: z.string(), hint: z.string().optional() })
  .meta({ id: "Failure" });
export type Failure = z.infer<typeof Failure>;

/** A page of items and where the next one begins. */
export interface Page<T> {
  items: T[];
  /** Cursor of the next page; absent on the last. */
  next?: string | undefined;
}

/** The schema of a page. */
export function pageOf<T extends z.ZodType>(items: T) {
  return z.object({ items: z.array(items), next: z.string().optional() });
}

/** Text of so many characters without a NUL: not all that stores it, or gets it as an argument, can hold one. */
export function textOf(least: number, most: number) {
  return z.string().min(least).max(most).regex(NO_NUL, "holds a NUL");
}
