import { getLogger } from "@logtape/logtape";
import { codeOf, describeError } from "../../errors/errors.ts";
import type { Clock } from "../clock.ts";
import type { DeliveryStore, DueDelivery } from "../jobs/ports.ts";
import { type After, systemAfter } from "../jobs/timer.ts";
import type { GatewayMetrics } from "./metrics.ts";
import type { WebhookGuard } from "./webhook-guard.ts";
import { sendWebhook, type WebhookAnswer } from "./webhook-request.ts";

const logger = getLogger(["flurry", "webhooks"]);

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
/** Waits before the second and each later attempt: 8 attempts in about 4 hours. */
const WAITS = [5 * SECOND, 30 * SECOND, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR];
/** Attempts of one delivery. */
export const WEBHOOK_ATTEMPTS = WAITS.length + 1;
/** Most of a receiver's Retry-After that is waited. */
const MAX_RETRY_AFTER = 2 * HOUR;
/** Attempts at the same time. */
const CONCURRENCY = 16;
/** Of these to one receiver, so that one that does not answer takes no more of the places. */
const PER_RECEIVER = 4;
/** For name, connection, request and the head of the answer. */
const TIMEOUT_MS = 15 * SECOND;
/** Before the store is asked again after it has failed; and for as long as it fails, that times 2 up to … */
const STORE_WAIT = { firstMs: SECOND, maxMs: MINUTE };

export interface WebhookSenderOptions {
  deliveries: DeliveryStore;
  guard: WebhookGuard;
  clock: Clock;
  metrics?: Pick<GatewayMetrics, "webhookAttempted"> | undefined;
  /** @default 15000 */
  timeoutMs?: number | undefined;
  /** From 0 to below 1. @default Math.random */
  random?: (() => number) | undefined;
  /** @default setTimeout */
  after?: After | undefined;
  /** Further certificates to trust, in PEM. */
  ca?: string | undefined;
}

/**
 * Delivers webhooks when they are due, each until it is received or has been tried WEBHOOK_ATTEMPTS
 * times. What is under way when it is disposed is due again at the next start: a receiver knows
 * repetitions by `webhook-id`.
 */
export class WebhookSender implements AsyncDisposable {
  readonly #options: WebhookSenderOptions;
  readonly #after: After;
  readonly #ending = new AbortController();
  readonly #active = new Set<Promise<void>>();
  #wake = Promise.withResolvers<void>();
  #running: Promise<void> | undefined;

  constructor(options: WebhookSenderOptions) {
    this.#options = options;
    this.#after = options.after ?? systemAfter;
  }

  start(): void {
    this.#running ??= this.#run();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#ending.abort();
    this.#wake.resolve();
    await this.#running;
    await Promise.all(this.#active);
  }

  async #run(): Promise<void> {
    const { deliveries } = this.#options;
    using _due = deliveries.onDue(() => this.#wake.resolve());
    let storeWait = STORE_WAIT.firstMs;
    while (!this.#ending.signal.aborted) {
      // What comes while the store is asked must not be missed.
      this.#wake = Promise.withResolvers();
      let waitMs: number | undefined;
      try {
        waitMs = await this.#takeDue();
        storeWait = STORE_WAIT.firstMs;
      } catch (error) {
        logger.error("Cannot read which webhooks are due: {error}", { error });
        waitMs = storeWait;
        storeWait = Math.min(storeWait * 2, STORE_WAIT.maxMs);
      }
      if (this.#ending.signal.aborted) this.#wake.resolve();
      await this.#woken(waitMs);
    }
  }

  /** Begins what is due; ms until more is, undefined if nothing can be begun before something else happens. */
  async #takeDue(): Promise<number | undefined> {
    const free = CONCURRENCY - this.#active.size;
    if (free <= 0) return undefined;
    const due = await this.#options.deliveries.takeDue(free, PER_RECEIVER);
    for (const delivery of due) this.#begin(delivery);
    return due.length === free ? undefined : this.#options.deliveries.nextMs(PER_RECEIVER);
  }

  async #woken(waitMs: number | undefined): Promise<void> {
    using _timer = waitMs === undefined ? undefined : this.#after(waitMs, () => this.#wake.resolve());
    await this.#wake.promise;
  }

  #begin(delivery: DueDelivery): void {
    const attempt = this.#attempt(delivery).finally(() => {
      this.#active.delete(attempt);
      this.#wake.resolve();
    });
    this.#active.add(attempt);
  }

  async #attempt(delivery: DueDelivery): Promise<void> {
    const { guard, clock, metrics, timeoutMs = TIMEOUT_MS, ca } = this.#options;
    const signal = AbortSignal.any([this.#ending.signal, AbortSignal.timeout(timeoutMs)]);
    const began = clock.monotonic();
    let outcome: Outcome;
    try {
      const timestamp = Math.floor(clock.now() / 1000);
      outcome = outcomeOf(await sendWebhook(delivery, { guard, timestamp, signal, ca }));
    } catch (error) {
      if (this.#ending.signal.aborted) return;
      outcome = failureOf(error, signal, timeoutMs);
    }
    const { ok, final, retryAfterMs, ...seen } = outcome;
    const retryInMs = ok || final ? undefined : this.#waitAfter(delivery.attempts + 1, retryAfterMs);
    const ms = Math.round(clock.monotonic() - began);
    metrics?.webhookAttempted(ok ? "delivered" : retryInMs === undefined ? "failed" : "retrying");
    await this.#record(delivery.id, { ...seen, ok, ms, retryInMs });
  }

  #waitAfter(attempts: number, retryAfterMs = 0): number | undefined {
    const wait = retryWait(attempts, (this.#options.random ?? Math.random)());
    return wait === undefined ? undefined : Math.max(wait, Math.min(retryAfterMs, MAX_RETRY_AFTER));
  }

  /** Notes an attempt, also when the store fails for a while: until then nobody else tries this one. */
  async #record(id: string, attempt: Parameters<DeliveryStore["attempted"]>[1]): Promise<void> {
    for (let waitMs = STORE_WAIT.firstMs; ; waitMs = Math.min(waitMs * 2, STORE_WAIT.maxMs)) {
      try {
        await this.#options.deliveries.attempted(id, attempt);
        return;
      } catch (error) {
        logger.error("Cannot note an attempt of the webhook {id}: {error}", { id, error });
        if (this.#ending.signal.aborted) return;
        await this.#pause(waitMs);
      }
    }
  }

  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    using _timer = this.#after(ms, resolve);
    this.#ending.signal.addEventListener("abort", () => resolve(), { once: true });
    await promise;
  }
}

/**
 * Ms to wait after so many attempts, with up to a tenth more; undefined after the last.
 *
 * @param random - from 0 to below 1
 */
export function retryWait(attempts: number, random: number): number | undefined {
  const wait = WAITS[attempts - 1];
  return wait === undefined ? undefined : Math.round(wait * (1 + random / 10));
}

interface Outcome {
  ok: boolean;
  /** Whether another attempt would be no use. */
  final?: boolean;
  status?: number;
  error?: string;
  retryAfterMs?: number | undefined;
}

function outcomeOf({ status, retryAfterMs }: WebhookAnswer): Outcome {
  if (status >= 200 && status < 300) return { ok: true, status };
  if (status >= 300 && status < 400) return { ok: false, status, error: "A redirect, which is not followed" };
  // 410 Gone: the receiver wants no more of this (Standard Webhooks).
  return { ok: false, status, error: `Answered with ${status}`, final: status === 410, retryAfterMs };
}

function failureOf(error: unknown, signal: AbortSignal, timeoutMs: number): Outcome {
  if (signal.aborted) return { ok: false, error: `No answer in ${timeoutMs} ms` };
  const { message } = describeError(error);
  return { ok: false, error: message.slice(0, 500), final: codeOf(error) === "WEBHOOK_FORBIDDEN" };
}
