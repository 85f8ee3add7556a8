import { z } from "zod";
import { textOf } from "./common.ts";

/** Most characters of a module, with all that it imports. */
export const MAX_MODULE_CHARACTERS = 16 * 1024 * 1024;

/** Name of a header or a cookie (RFC 9110, 5.6.2). */
const Token = z
  .string()
  .regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$/, "must be a token of 1 to 64 characters")
  .meta({ example: "x-session" });

/** A name in the DNS, in lower case. */
export const HostName = z
  .string()
  .max(253)
  .regex(
    /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/,
    "must be a host name in lower case",
  )
  .meta({ example: "shop.example.com" });

/** A host and a port, as `api.example.com:443`; `*.` stands for any name below. */
export const HostPort = z
  .string()
  .max(260)
  .regex(/^(\*\.)?([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([1-9]\d{0,4})$/, "must be HOST:PORT")
  .refine((text) => Number(text.slice(text.lastIndexOf(":") + 1)) <= 65_535, "has no port up to 65535")
  .meta({ example: "api.example.com:443" });

/** A request that the parent answers before it is frozen. */
export const WarmUpRequest = z
  .strictObject({
    path: textOf(1, 8192).regex(/^\//, "must begin with /").meta({ example: "/" }),
    method: z
      .string()
      .regex(/^[A-Z]{1,32}$/, "must be capital letters")
      .default("GET")
      .meta({ example: "GET" }),
    headers: z.record(Token, textOf(0, 8192)).default({}),
    body: textOf(0, 1024 * 1024).optional(),
  })
  .meta({ id: "WarmUpRequest", example: { path: "/" } });

/** A JS worker's code. */
export const WorkerModule = z
  .strictObject({
    code: z.string().max(MAX_MODULE_CHARACTERS).meta({
      description: "ES module with all that it imports, as `flurry deploy` bundles it; left out of lists",
      example: "export default { fetch: () => new Response('hello') }",
    }),
    entry: textOf(1, 255).default("worker.js").meta({ description: "Name of its source, for people" }),
    warmUp: z.array(WarmUpRequest).max(100).default([]).meta({
      description: "Requests that the parent answers before it is frozen, so that children find that warm",
    }),
  })
  .meta({ id: "WorkerModule", example: { code: "export default { fetch: () => new Response('hello') }" } });
export type WorkerModule = z.infer<typeof WorkerModule>;

const idleMs = z.int().min(1).max(86_400_000).optional();
const maxAgeMs = z
  .int()
  .min(1000)
  .max(7 * 86_400_000)
  .optional();
const concurrency = z.int().min(1).max(128).optional();

/** What of a worker's requests share a VM. */
export const WorkerIsolation = z
  .discriminatedUnion("mode", [
    z
      .strictObject({ mode: z.literal("request") })
      .meta({ description: "Each request has a fresh fork, which is discarded after the answer" }),
    z
      .strictObject({
        mode: z.literal("session"),
        cookie: Token.optional().meta({
          description:
            "Cookie that names the session, given to who comes without. `flurry-session` by default",
        }),
        header: Token.optional().meta({
          description: "Header that names the session in place of a cookie; a request without it is refused",
        }),
        ...{ concurrency, idleMs, maxAgeMs },
      })
      .refine(({ cookie, header }) => !(cookie && header), "has a cookie and a header")
      .meta({ description: "All requests of a session go to the same fork" }),
    z
      .strictObject({
        mode: z.literal("shared"),
        ...{ concurrency, idleMs, maxAgeMs },
        maxRequests: z.int().min(1).max(1_000_000_000).optional(),
      })
      .meta({ description: "A fork serves many requests, several at once" }),
  ])
  .meta({ id: "WorkerIsolation", example: { mode: "shared", concurrency: 10 } });
export type WorkerIsolation = z.infer<typeof WorkerIsolation>;

/** How a module answers HTTP requests. */
export const Serving = z
  .strictObject({
    isolation: WorkerIsolation.prefault({ mode: "request" }),
    hosts: z.array(HostName).max(100).default([]).meta({
      description: "Requests with these in `Host` go to this worker, beside those to /w/NAME/",
    }),
    access: z.enum(["public", "key"]).default("public").meta({
      description: "Whether anyone may ask, or who has a key with scope `submit`",
    }),
    timeoutMs: z.int().min(1).max(3_600_000).default(30_000).meta({
      description:
        "Longest time from when a request has its VM until the answer begins; it begins anew with each MiB of the request's body that the worker takes",
    }),
    maxChildren: z.int().min(1).max(10_000).default(100).meta({ description: "VMs at most" }),
    maxQueue: z.int().min(1).max(100_000).default(1000).meta({
      description: "Requests that may wait for a VM; one more is answered with 503",
    }),
    ahead: z.int().min(0).max(1000).default(4).meta({
      description:
        "VMs at most that are forked ahead of need: as many as the busiest second of late has taken. 0: none",
    }),
    queueMs: z.int().min(1).max(600_000).default(10_000).meta({
      description: "Longest time that a request waits for a VM; then it is answered with 503",
    }),
  })
  .meta({ id: "Serving", example: { isolation: { mode: "request" } } });
export type Serving = z.infer<typeof Serving>;
