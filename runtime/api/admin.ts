import { z } from "zod";
import { Name, pageOf, Time, textOf } from "./common.ts";
import { JobId, WebhookEvent } from "./jobs.ts";

/** `submit`: change jobs, workers; `read`: see them; `admin`: everything, keys, secrets and hosts too. */
export const Scope = z.enum(["submit", "read", "admin"]);
export type Scope = z.infer<typeof Scope>;

/** What one key may have at a time. */
export const KeyLimits = z
  .strictObject({
    runningTasks: z.int().min(1).optional(),
    waitingTasks: z.int().min(1).optional(),
    activeJobs: z.int().min(1).optional(),
    vms: z.int().min(1).optional(),
  })
  .meta({ id: "KeyLimits" });
export type KeyLimits = z.infer<typeof KeyLimits>;

export const KeyCreate = z
  .strictObject({
    name: textOf(1, 100),
    scopes: z.array(Scope).min(1),
    limits: KeyLimits.prefault({}),
  })
  .meta({ id: "KeyCreate" });
export type KeyCreate = z.infer<typeof KeyCreate>;

export const Key = z
  .object({ id: z.string(), name: z.string(), scopes: z.array(Scope), limits: KeyLimits, createdAt: Time })
  .meta({ id: "Key" });
export type Key = z.infer<typeof Key>;

export const KeyCreated = Key.extend({
  key: z.string().meta({ description: "The key itself. Shown this once" }),
}).meta({ id: "KeyCreated" });
export const KeyPage = pageOf(Key).meta({ id: "KeyPage" });

const SecretKeys = z
  .array(z.string().regex(/^[0-9a-zA-Z_-]{1,64}$/))
  .max(1000)
  .optional()
  .meta({
    description: "Ids of the keys whose jobs, and workers over HTTP, may have it; all keys by default",
  });

export const SecretPut = z
  .strictObject({ value: textOf(1, 65_536), keys: SecretKeys })
  .meta({ id: "SecretPut" });
export type SecretPut = z.infer<typeof SecretPut>;
export const Secret = z.object({ name: Name, keys: SecretKeys, createdAt: Time }).meta({ id: "Secret" });
export type Secret = z.infer<typeof Secret>;
export const SecretPage = pageOf(Secret).meta({ id: "SecretPage" });

/** Something that keeps failing and is not used for the time being. */
export const SetAside = z
  .object({
    kind: z.enum(["host", "worker"]),
    id: z
      .string()
      .meta({ description: "Of the host, or of what workers with the same parent have in common" }),
    label: z.string(),
    reason: z.string(),
    failures: z.int(),
    since: Time,
    nextTryAt: Time,
  })
  .meta({ id: "SetAside" });
export type SetAside = z.infer<typeof SetAside>;

/** A machine that runs children. */
export const HostEntry = z
  .object({
    id: z.string(),
    name: z.string(),
    accel: z.string().optional(),
    cores: z.int(),
    memoryBytes: z.int().meta({ description: "That children may use together" }),
    slots: z.int(),
    running: z.int(),
    state: z.enum(["up", "set-aside", "down"]),
    setAside: z.array(SetAside),
    startedAt: Time,
    seenAt: Time,
  })
  .meta({ id: "Host" });
export type HostEntry = z.infer<typeof HostEntry>;
export const HostPage = pageOf(HostEntry).meta({ id: "HostPage" });

/** A message to a job's webhook. */
export const Delivery = z
  .object({
    id: z.string(),
    job: JobId,
    event: WebhookEvent,
    url: z.string(),
    state: z.enum(["pending", "delivered", "failed"]),
    attempts: z.array(
      z.object({ at: Time, status: z.int().optional(), error: z.string().optional(), ms: z.int() }),
    ),
    nextTryAt: Time.optional(),
  })
  .meta({ id: "Delivery" });
export type Delivery = z.infer<typeof Delivery>;
export const DeliveryPage = pageOf(Delivery).meta({ id: "DeliveryPage" });
