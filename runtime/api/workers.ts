import { z } from "zod";
import { Environment, Failure, MAX_FILE_BYTES, Name, pageOf, Time, textOf, Variable } from "./common.ts";
import { Crons } from "./crons.ts";
import { HostPort, Serving, WorkerModule } from "./modules.ts";

/** Image of workers that are JS modules. */
export const JS_IMAGE = "js";

/** When and how often a failed task is tried again. */
export const Retry = z
  .strictObject({
    maxAttempts: z.int().min(1).max(100).default(1).meta({ description: "Attempts in all" }),
    backoff: z
      .strictObject({
        initialMs: z.int().min(0).max(3_600_000).default(1000),
        factor: z.number().min(1).max(10).default(2),
        maxMs: z.int().min(0).max(86_400_000).default(60_000),
      })
      .prefault({})
      .meta({ description: "Wait before attempt n+1: initialMs * factor^(n-1), at most maxMs, with jitter" }),
  })
  .meta({ id: "Retry" });
export type Retry = z.infer<typeof Retry>;

/** An absolute path in the guest without `.` and `..`. */
export const GuestPath = textOf(0, 1024).refine(
  (path) => /^(\/[^/]+)+$/.test(path) && !/\/\.{1,2}(\/|$)/.test(path),
  "must be absolute, without . and ..",
);

/** A file that lies in the VM before the worker's warm-up. */
export const GuestFile = z
  .strictObject({
    path: GuestPath,
    text: z.string().optional().meta({ description: "Content as UTF-8" }),
    base64: z.base64().optional().meta({ description: "Content in base64" }),
    mode: z.int().min(0).max(0o777).default(0o644),
  })
  .refine((file) => (file.text === undefined) !== (file.base64 === undefined), "needs either text or base64")
  .meta({ id: "GuestFile" });
export type GuestFile = z.infer<typeof GuestFile>;

/** Program and arguments. */
export const Argv = z.array(textOf(0, 131_072)).min(1).max(4096);

/** Which programs of a task's VM may fork it, and how often. */
export const Forks = z
  .strictObject({
    max: z.int().min(0).max(1000).default(64).meta({
      description: "VMs at a time that are forked from a task's, and from those; 0: none",
    }),
    generations: z.int().min(1).max(32).default(32).meta({ description: "Generations below the task's VM" }),
    users: z
      .array(z.int().min(0).max(0xffffffff))
      .max(100)
      .optional()
      .meta({ description: "Ids of the users in the guest that may fork; all by default" }),
  })
  .meta({ id: "Forks", description: "What programs in a task's VM may fork" });
export type Forks = z.infer<typeof Forks>;

/**
 * What runs a job's tasks, or answers requests: a command in an image, or a JS module; with its options.
 * What only one of the two kinds has is refused with the other.
 */
export const WorkerSpec = z
  .strictObject({
    image: Name.optional().meta({
      description: "Image that the command runs in; built when it is a recipe that has no image yet",
      example: "base",
    }),
    command: Argv.refine((argv) => argv[0] !== "", "has an empty program")
      .optional()
      .meta({
        description: "Program and arguments of every task",
        example: ["sh", "-c", "echo $FLURRY_TASK_INDEX"],
      }),
    module: WorkerModule.optional(),
    http: Serving.optional(),
    allow: z
      .array(HostPort)
      .max(100)
      .optional()
      .meta({ description: "Where a module's `fetch` may go; nowhere by default" }),
    crons: Crons.optional().meta({
      description:
        "Times at which a module's `scheduled()` is called, in UTC: minute, hour, day, month, weekday",
    }),
    cwd: GuestPath.optional(),
    files: z
      .array(GuestFile)
      .max(1000)
      .default([])
      .refine((files) => fileBytes(files) <= MAX_FILE_BYTES, `are more than ${MAX_FILE_BYTES} bytes`)
      .meta({ description: "Put into the parent before it is warmed up and frozen" }),
    warmUp: Argv.optional().meta({ description: "Command that the parent runs before it is frozen" }),
    env: Environment.default({}),
    secrets: z
      .record(Variable, Name)
      .default({})
      .meta({ description: "Variable of each task: name of the secret that it holds. Never in the parent" }),
    forks: Forks.optional(),
    memoryMiB: z.int().min(64).max(65_536).default(512),
    cpus: z.int().min(1).max(64).default(1),
    memory: z.enum(["mapped", "lazy"]).default("mapped").meta({
      description: "How a VM has its memory: all of it mapped at the start, or page by page as it is needed",
    }),
    timeoutMs: z.int().min(1).max(86_400_000).optional().meta({ description: "Longest time of one attempt" }),
    retry: Retry.prefault({}),
  })
  .superRefine((spec, context) => {
    const wrong = (path: string, message: string) =>
      context.addIssue({ code: "custom", path: [path], message });
    if (spec.module === undefined) {
      if (spec.image === undefined) wrong("image", "is missing: a command needs one");
      if (spec.command === undefined) wrong("command", "is missing: a worker has a command or a module");
      for (const key of ["http", "allow", "crons"] as const) if (spec[key]) wrong(key, "is for modules");
    } else {
      for (const key of ["image", "command", "cwd", "warmUp"] as const)
        if (spec[key]) wrong(key, "is not for modules");
      if (spec.files.length > 0) wrong("files", "are not for modules");
    }
  })
  .meta({
    id: "WorkerSpec",
    example: { image: "base", command: ["sh", "-c", "echo $FLURRY_TASK_INDEX"], timeoutMs: 60_000 },
  });
export type WorkerSpec = z.infer<typeof WorkerSpec>;
export type WorkerSpecInput = z.input<typeof WorkerSpec>;

/** A worker that is a JS module. */
export type ModuleSpec = WorkerSpec & { module: WorkerModule };

export function isModule(spec: WorkerSpec): spec is ModuleSpec {
  return spec.module !== undefined;
}

/** Name of the image that a worker runs in. */
export function imageOf({ image }: WorkerSpec): string {
  return image ?? JS_IMAGE;
}

/**
 * - `cold`: nothing has been made ready yet, or it has been given up for others; the next task does it
 * - `preparing`: image or parent are being made
 * - `ready`: children can be forked
 * - `failed`: the reason is in `error`; a new version, or the next job, tries again
 */
export const WorkerState = z.enum(["cold", "preparing", "ready", "failed"]);
export type WorkerState = z.infer<typeof WorkerState>;

/** One version of a worker. */
export const WorkerVersion = z
  .object({
    name: Name,
    version: z.int(),
    current: z.boolean().meta({ description: "Whether jobs that name no version get this one" }),
    state: WorkerState,
    step: z.string().optional().meta({ description: "What is being done while it is preparing" }),
    error: Failure.optional(),
    spec: WorkerSpec,
    createdAt: Time,
  })
  .meta({ id: "WorkerVersion" });
export type WorkerVersion = z.infer<typeof WorkerVersion>;

/** What has become of one version, without its code. */
export const WorkerStatus = z
  .object({
    name: Name,
    version: z.int(),
    current: z.boolean(),
    state: WorkerState,
    step: z.string().optional().meta({ description: "What is being done while it is preparing" }),
    error: Failure.optional(),
    seen: z
      .string()
      .meta({ description: "Names all of this: given as `after`, it waits for something else" }),
  })
  .meta({ id: "WorkerStatus" });
export type WorkerStatus = z.infer<typeof WorkerStatus>;

export const WorkerPage = pageOf(WorkerVersion).meta({ id: "WorkerPage" });

/** Something that a JS worker has printed while it answered requests. */
export const WorkerLogRecord = z
  .object({
    id: z.int().meta({ description: "Grows; a list can be taken up again after it" }),
    at: Time,
    vm: z.string().meta({ description: '"" of what the gateway says, as of calls that were skipped' }),
    level: z.enum(["debug", "info", "warn", "error"]),
    text: z.string(),
    requestId: z.string().optional(),
  })
  .meta({ id: "WorkerLogRecord" });
export type WorkerLogRecord = z.infer<typeof WorkerLogRecord>;
export const WorkerLogPage = z.object({ items: z.array(WorkerLogRecord) }).meta({ id: "WorkerLogPage" });

/** The version that jobs get when they name none. */
export const CurrentVersion = z.strictObject({ version: z.int().min(1) }).meta({ id: "CurrentVersion" });

function fileBytes(files: readonly GuestFile[]): number {
  return files.reduce(
    (sum, { text, base64 }) => sum + (text ? Buffer.byteLength(text) : ((base64?.length ?? 0) * 3) / 4),
    0,
  );
}
