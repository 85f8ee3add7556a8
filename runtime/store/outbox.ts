import type { WebhookEvent } from "../api/mod.ts";

/** A message that a webhook is to get. */
export interface NewDelivery {
  /** `msg_…`; it is in the body too. */
  id: string;
  job: string;
  event: WebhookEvent;
  url: string;
  /** As `seal` gave it. */
  secret?: string | undefined;
  /** JSON. */
  body: string;
}

/** Where the jobs' tables put messages to webhooks. */
export interface Outbox {
  /** Encrypts a webhook's secret: what is stored with the job, and given to `enqueue`. */
  seal(job: string, secret: string): string;
  /** Stores a message, due at once. Called within the transaction of the change that it tells of. */
  enqueue(delivery: NewDelivery): void;
  /** Removes the messages of a job. Called within a transaction. */
  forget(job: string): void;
  /** Called after a transaction that has enqueued. */
  wake(): void;
}
