import { z } from "zod";

/**
 * What a runtime and its memserver say to each other, a JSON object a line: requests on the memserver's
 * standard input; answers, with the request's id, and events on its standard output.
 */

const hash = z.string().regex(/^[0-9a-f]{64}$/);
/** `HOST:PORT` of another memserver. */
const address = z.string().regex(/^.+:\d{1,5}$/);

const openSchema = z.strictObject({
  op: z.literal("open"),
  /** Hash of the descriptor. */
  image: hash,
  /** Directory with `descriptor`, `memory`, `pages`, and `working-set` once there is one. */
  dir: z.string().min(1),
  /** Those who have the image when it is not, or not all, in `dir`; none when it is. */
  holders: z.array(address).max(64),
});

const backgroundSchema = z.strictObject({
  afterMs: z.number().nonnegative(),
  /** null: as fast as the child takes them. */
  bytesPerSecond: z.number().positive().nullable(),
});

const attachSchema = z.strictObject({
  op: z.literal("attach"),
  child: z.string().min(1),
  image: hash,
  /** Path of the unix socket on which its QEMU waits. */
  socket: z.string().min(1),
  preempt: z.boolean(),
  /** It had a memserver before, and waits for another one. */
  recover: z.boolean(),
  background: backgroundSchema,
  /** Whether it is sent the working set first, or gives one where there is none yet. */
  workingSet: z.boolean(),
  measure: z.boolean(),
});

export const requestSchema = z.discriminatedUnion("op", [
  openSchema,
  /** Nobody attaches to it any more. */
  z.strictObject({ op: z.literal("close"), image: hash }),
  attachSchema,
  /** The child is gone, or is about to be. `keep`: what it asked for may serve as the working set. */
  z.strictObject({ op: z.literal("detach"), child: z.string(), keep: z.boolean() }),
  z.strictObject({ op: z.literal("stats"), child: z.string() }),
  /** Asks other memservers which image was made for a key. */
  z.strictObject({ op: z.literal("find"), key: hash, holders: z.array(address).max(64) }),
  /** Serves images to other memservers: those in `dir` by hash, and those that are open. */
  z.strictObject({
    op: z.literal("listen"),
    host: z.string(),
    port: z.int().min(0).max(65_535),
    dir: z.string(),
  }),
  z.strictObject({ op: z.literal("ping") }),
]);

export type ControlRequest = z.infer<typeof requestSchema>;

const childStatsSchema = z.strictObject({
  requests: z.int(),
  requestsBeforeRun: z.int(),
  pushed: z.int(),
  bytes: z.int(),
  serviceUs: z.array(z.number()),
  placedUs: z.array(z.number()),
});

/** What is answered to each request. */
export const answerSchemas = {
  open: z.strictObject({
    /** Pages of the image, and those of them that are no zero pages. */
    pages: z.int(),
    dataPages: z.int(),
    /** Whether all of it is in the directory. */
    complete: z.boolean(),
  }),
  close: z.strictObject({}),
  attach: z.strictObject({ recording: z.boolean() }),
  detach: z.strictObject({}),
  stats: childStatsSchema,
  find: z.strictObject({
    image: hash.nullable(),
    /** Those who have it. */
    holders: z.array(address),
  }),
  listen: z.strictObject({ port: z.int() }),
  ping: z.strictObject({}),
} as const satisfies Record<ControlRequest["op"], z.ZodType>;

export type ControlAnswer<Op extends ControlRequest["op"]> = z.infer<(typeof answerSchemas)[Op]>;

const failureSchema = z.strictObject({ code: z.string(), message: z.string() });

export const eventSchema = z.discriminatedUnion("event", [
  z.strictObject({ event: z.literal("ready") }),
  z.strictObject({ event: z.literal("complete"), child: z.string() }),
  z.strictObject({ event: z.literal("lost"), child: z.string(), reason: z.string() }),
  z.strictObject({ event: z.literal("failed"), child: z.string(), error: failureSchema }),
  /** All of an image that came from elsewhere is in its directory. */
  z.strictObject({ event: z.literal("image-complete"), image: hash }),
  /** What comes of an image is not kept any more: the reason is the disk's. */
  z.strictObject({ event: z.literal("image-degraded"), image: hash, reason: z.string() }),
]);

export type ControlEvent = z.infer<typeof eventSchema>;

export const replySchema = z.union([
  z.strictObject({ id: z.int(), answer: z.record(z.string(), z.unknown()) }),
  z.strictObject({ id: z.int(), error: failureSchema }),
]);

/** Longest line that either side takes. */
export const MAX_LINE_BYTES = 1024 * 1024;
