import { FlurryError } from "../../../errors/errors.ts";

/** What of a worker's requests share a child. Times are in milliseconds. */
export type Isolation = RequestIsolation | SessionIsolation | SharedIsolation;

/** Each request has a fresh child, which is discarded after the answer. */
export interface RequestIsolation {
  mode: "request";
  /** How long a child that was forked for somebody who did not wait is kept for others. @default 1000 */
  idleMs?: number | undefined;
}

/** All requests with the same session key go to the same child. */
export interface SessionIsolation {
  mode: "session";
  /** Requests of one session at once; more of them wait. @default 10 */
  concurrency?: number | undefined;
  /** How long a child without requests is kept for its session. @default 300000 */
  idleMs?: number | undefined;
  /**
   * Age at which a child takes no more requests: the session goes on in a fresh one.
   *
   * @default 86400000
   */
  maxAgeMs?: number | undefined;
}

/** A child serves many requests, several of them at once. */
export interface SharedIsolation {
  mode: "shared";
  /** Requests that a child serves at once. @default 10 */
  concurrency?: number | undefined;
  /** How long a child is kept that demand has not needed. @default 60000 */
  idleMs?: number | undefined;
  /** Age at which a child takes no more requests. @default 3600000 */
  maxAgeMs?: number | undefined;
  /** Requests after which a child is replaced. @default 10000 */
  maxRequests?: number | undefined;
}

/** An isolation with nothing left open. */
export interface IsolationRules {
  mode: Isolation["mode"];
  concurrency: number;
  idleMs: number;
  maxAgeMs: number;
  maxRequests: number;
}

const MINUTE = 60_000;
const never = Number.POSITIVE_INFINITY;
const defaults: Record<Isolation["mode"], Omit<IsolationRules, "mode">> = {
  request: { concurrency: 1, idleMs: 1000, maxAgeMs: never, maxRequests: 1 },
  session: { concurrency: 10, idleMs: 5 * MINUTE, maxAgeMs: 24 * 60 * MINUTE, maxRequests: never },
  shared: { concurrency: 10, idleMs: MINUTE, maxAgeMs: 60 * MINUTE, maxRequests: 10_000 },
};

/** Fills in the defaults. @throws FlurryError BAD_ARGUMENT */
export function rulesOf(isolation: Isolation): IsolationRules {
  const { mode } = isolation;
  const { idleMs = defaults[mode].idleMs } = isolation;
  const rules: IsolationRules = { ...defaults[mode], mode, idleMs };
  if (isolation.mode !== "request") {
    rules.concurrency = isolation.concurrency ?? rules.concurrency;
    rules.maxAgeMs = isolation.maxAgeMs ?? rules.maxAgeMs;
  }
  if (isolation.mode === "shared") rules.maxRequests = isolation.maxRequests ?? rules.maxRequests;
  requireCount("concurrency", rules.concurrency);
  if (Number.isFinite(rules.maxRequests)) requireCount("maxRequests", rules.maxRequests);
  requirePositive("idleMs", rules.idleMs);
  requirePositive("maxAgeMs", rules.maxAgeMs);
  // More than it may serve at all, it cannot serve at once.
  rules.concurrency = Math.min(rules.concurrency, rules.maxRequests);
  return rules;
}

/** @throws FlurryError BAD_ARGUMENT unless it is a whole number from `least` on */
export function requireCount(name: string, value: number, least = 1): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new FlurryError("BAD_ARGUMENT", `${name} must be a whole number of at least ${least}: ${value}`);
}

/** @throws FlurryError BAD_ARGUMENT unless it is a number above 0 */
export function requirePositive(name: string, value: number): void {
  if (value > 0) return;
  throw new FlurryError("BAD_ARGUMENT", `${name} must be above 0: ${value}`);
}
