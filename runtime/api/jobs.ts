import { z } from "zod";
import { Environment, Failure, MAX_TASKS, Name, NO_NUL, pageOf, Time, textOf } from "./common.ts";
import { Retry, WorkerSpec } from "./workers.ts";

export const JobId = z
  .string()
  .regex(/^job_[0-9a-f]{24}$/, "must be the id of a job: job_ and 24 hexadecimal digits")
  .meta({ example: "job_0123456789abcdef01234567" });

export const JobState = z.enum(["queued", "running", "succeeded", "failed", "canceling", "canceled"]);
export type JobState = z.infer<typeof JobState>;

export const TaskState = z.enum(["queued", "running", "retrying", "succeeded", "failed", "canceled"]);
export type TaskState = z.infer<typeof TaskState>;

/** What a webhook can be told. */
export const WebhookEvent = z.enum(["job.running", "job.succeeded", "job.failed", "job.canceled"]);
export type WebhookEvent = z.infer<typeof WebhookEvent>;

export const Webhook = z
  .strictObject({
    url: z
      .url({ protocol: /^https?$/ })
      .max(2000)
      .regex(NO_NUL, "holds a NUL"),
    secret: textOf(16, 200).optional().meta({
      description: "Key of the signature (Standard Webhooks, HMAC-SHA256). Never shown again",
    }),
    events: z.array(WebhookEvent).min(1).default(["job.succeeded", "job.failed", "job.canceled"]),
  })
  .meta({ id: "Webhook" });

/** A word that jobs are found by. */
export const Tag = textOf(1, 100);

const Count = z.int().min(1).max(MAX_TASKS);
const Inputs = z.array(z.unknown()).min(1).max(100_000);

/** The tasks of a job: so many, or one for each input. An input is any JSON value. */
export const Tasks = z
  .union([z.strictObject({ count: Count }), z.strictObject({ inputs: Inputs })])
  .meta({ id: "Tasks" });

/** A deployed worker. */
export const WorkerRef = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,62}(@[1-9][0-9]{0,8})?$/, "must be the name of a worker, or name@version");

const jobFields = {
  worker: z
    .union([WorkerRef, WorkerSpec])
    .meta({ description: "A deployed worker, as `name` or `name@version`, or one that is described here" }),
  name: textOf(1, 200).optional().meta({ description: "For people; need not be unique" }),
  priority: z.int().min(0).max(9).default(5).meta({ description: "9 comes first; lower ones still move on" }),
  retry: Retry.optional().meta({ description: "In place of the worker's" }),
  timeoutMs: z
    .int()
    .min(1)
    .max(86_400_000)
    .optional()
    .meta({ description: "Of one attempt, in place of the worker's" }),
  env: Environment.default({}).meta({ description: "Added to the worker's" }),
  tags: z.array(Tag).max(32).default([]),
  webhook: Webhook.optional(),
};

// Made up from the schema, an example would name workers and webhooks that are not there.
const EXAMPLE = { worker: { image: "base", command: ["sh", "-c", "echo $FLURRY_TASK_INDEX"] } };

/** `POST /v1/jobs` as JSON. */
export const JobSubmit = z
  .strictObject({ ...jobFields, tasks: Tasks })
  .meta({ id: "JobSubmit", example: { ...EXAMPLE, tasks: { count: 4 } } });
export type JobSubmit = z.infer<typeof JobSubmit>;
export type JobSubmitInput = z.input<typeof JobSubmit>;

/** First line of `POST /v1/jobs` as NDJSON; each line after it is the input of one task. */
export const JobHead = z.strictObject(jobFields).meta({ id: "JobHead", example: EXAMPLE });
export type JobHead = z.infer<typeof JobHead>;
export type JobHeadInput = z.input<typeof JobHead>;

export const TaskCounts = z
  .object({
    total: z.int(),
    queued: z.int(),
    running: z.int(),
    retrying: z.int(),
    succeeded: z.int(),
    failed: z.int(),
    canceled: z.int(),
  })
  .meta({ id: "TaskCounts" });
export type TaskCounts = z.infer<typeof TaskCounts>;

export const Job = z
  .object({
    id: JobId,
    name: z.string().optional(),
    state: JobState,
    reason: z.string().meta({ description: "Why it is in this state" }),
    waiting: z.string().optional().meta({
      description: "Why no task of it runs at this moment, while some wait. Only GET /v1/jobs/{id} tells it",
    }),
    worker: z
      .object({
        name: Name.optional(),
        version: z.int().optional(),
        image: z.string(),
        command: z.array(z.string()),
      })
      .meta({ description: "Without a name when the job described it itself" }),
    priority: z.int(),
    tags: z.array(z.string()),
    retry: Retry,
    timeoutMs: z.int().optional(),
    tasks: TaskCounts,
    webhook: z.object({ url: z.string(), events: z.array(WebhookEvent) }).optional(),
    createdAt: Time,
    changedAt: Time.meta({ description: "When it came into its state" }),
    startedAt: Time.optional(),
    endedAt: Time.optional(),
  })
  .meta({ id: "Job" });
export type Job = z.infer<typeof Job>;

export const JobPage = pageOf(Job).meta({ id: "JobPage" });

/** What `POST /v1/jobs:validate` says of a job that could be submitted. */
export const Validated = z
  .object({
    valid: z.literal(true),
    tasks: z.int(),
    worker: z.object({ name: Name.optional(), version: z.int().optional(), image: z.string() }),
  })
  .meta({ id: "Validated" });
export type Validated = z.infer<typeof Validated>;

export const Task = z
  .object({
    index: z.int(),
    state: TaskState,
    reason: z.string(),
    attempt: z.int().meta({ description: "Attempts begun that count; 0 before the first" }),
    input: z.unknown().optional(),
    changedAt: Time,
    startedAt: Time.optional(),
    endedAt: Time.optional(),
    vm: z.string().optional().meta({ description: "Child of the last attempt" }),
    exitCode: z.int().optional(),
    signal: z.string().optional(),
    error: Failure.optional(),
  })
  .meta({ id: "Task" });
export type Task = z.infer<typeof Task>;
export const TaskPage = pageOf(Task).meta({ id: "TaskPage" });

/** A file that a task left in /out. */
export const Artifact = z
  .object({
    task: z.int(),
    path: z.string().meta({ description: "Below /out" }),
    size: z.int(),
    mode: z.int(),
    sha256: z.string(),
  })
  .meta({ id: "Artifact" });
export type Artifact = z.infer<typeof Artifact>;
export const ArtifactPage = pageOf(Artifact).meta({ id: "ArtifactPage" });

/** How a task ended: one line of `GET /v1/jobs/{id}/results`. */
export const TaskResult = z
  .object({
    index: z.int(),
    state: z.enum(["succeeded", "failed", "canceled"]),
    attempt: z.int(),
    exitCode: z.int().optional(),
    signal: z.string().optional(),
    error: Failure.optional(),
    value: z.unknown().optional().meta({
      description: "What the `task()` of a JS worker has returned, at most 1 MiB as JSON; commands have none",
    }),
    stdout: z.string().meta({ description: "The first 64 KiB that it printed; the logs have the rest" }),
    stdoutTruncated: z.boolean(),
    artifacts: z.int().meta({ description: "Number of files" }),
    ended: z.int().meta({
      description:
        "Its place among the tasks of the job that have ended, from 1. It only grows: a task that is tried again gets a new one",
    }),
    startedAt: Time.optional(),
    endedAt: Time,
  })
  .meta({ id: "TaskResult" });
export type TaskResult = z.infer<typeof TaskResult>;

/** A change of a job or of one of its tasks; `id` grows, and a stream can be taken up again after it. */
export const JobEvent = z
  .object({
    id: z.int(),
    at: Time,
    type: z.enum([
      "job.queued",
      "job.running",
      "job.succeeded",
      "job.failed",
      "job.canceling",
      "job.canceled",
      "task.queued",
      "task.running",
      "task.retrying",
      "task.succeeded",
      "task.failed",
      "task.canceled",
    ]),
    reason: z.string(),
    task: z.int().optional(),
    attempt: z.int().optional(),
    vm: z.string().optional(),
    error: Failure.optional(),
  })
  .meta({ id: "JobEvent" });
export type JobEvent = z.infer<typeof JobEvent>;

/** A piece of what a task printed. */
export const LogChunk = z
  .object({
    id: z.int().meta({ description: "Grows; a stream can be taken up again after it" }),
    at: Time,
    task: z.int(),
    attempt: z.int(),
    stream: z
      .enum(["stdout", "stderr", "system"])
      .meta({ description: "system: Flurry itself, such as a truncation" }),
    text: z.string(),
  })
  .meta({ id: "LogChunk" });
export type LogChunk = z.infer<typeof LogChunk>;
