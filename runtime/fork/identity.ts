import { randomBytes, randomUUID } from "node:crypto";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { GuestIdentity, IdentityReceipt } from "../../guest-agent/protocol/mod.ts";
import type { Clock } from "../clock.ts";
import { newSshKey } from "./ssh-key.ts";

/** Random bytes that a child's kernel gets. */
const ENTROPY_BYTES = 64;
/** What a guest's clock may be ahead of the host's: both read it at moments of their own. */
const CLOCK_SLACK_MS = 1000;
/** Different bytes among 32 random ones: fewer come once in 10^25 draws. */
const LEAST_DIFFERENT_BYTES = 12;
/** Children whose random numbers are compared with those of the next one. */
const REMEMBERED = 4096;
/** Most hooks of a parent. */
const MOST_HOOKS = 64;

/** Who a child is to be. */
export interface Identity {
  /** 0-based place in its family. */
  index: number;
  hostname: string;
}

/**
 * What is wrong with a child's proof: a field of its receipt, or else
 * - `answer`: there was none in time
 * - `step`: its agent said that it could not do something
 * - `channel`: what it said is no message, or the channel was closed
 */
export type UnprovenField =
  | Exclude<keyof IdentityReceipt, "beforeNs" | "vmGenId" | "tookNs" | "kernelNs">
  | "answer"
  | "step"
  | "channel";

/** A child that has not proven who it is. It is gone. */
export class UnprovenError extends FlurryError {
  override name = "UnprovenError";
  readonly id: string;
  readonly field: UnprovenField;

  constructor(id: string, field: UnprovenField, reason: string, options: { cause?: unknown } = {}) {
    super("CHILD_UNPROVEN", `Child ${id} was killed: ${reason}`, options);
    this.id = id;
    this.field = field;
  }

  /** Of a child that came to no receipt, for whatever reason. */
  static of(id: string, cause: unknown): UnprovenError {
    const reason = cause instanceof Error ? cause.message : String(cause);
    return new UnprovenError(id, fieldOf(codeOf(cause)), reason, { cause });
  }
}

function fieldOf(code: string | undefined): UnprovenField {
  if (code === "AGENT_TIMEOUT" || code === "QMP_TIMEOUT") return "answer";
  return code === "AGENT_REFUSED" ? "step" : "channel";
}

/** All in which a child differs from its parent and from every other child. */
export function newIdentity(id: string, { index, hostname }: Identity, clock: Clock): GuestIdentity {
  return {
    ...{ hostname, index, vmId: id },
    machineId: randomBytes(16).toString("hex"),
    bootId: randomUUID(),
    realtimeNs: nanoseconds(clock.now()),
    entropy: randomBytes(ENTROPY_BYTES),
    // Taken by images that have an SSH server, and by no other.
    sshKey: newSshKey(),
  };
}

/** Milliseconds as the guest has them. */
export function nanoseconds(ms: number): bigint {
  return BigInt(Math.round(ms * 1000)) * 1000n;
}

/** Random numbers that children have drawn of late: none may come twice. */
export class Draws {
  readonly #seen = new Set<string>();

  /** Whether it is the first time. */
  add(draw: string): boolean {
    if (this.#seen.has(draw)) return false;
    this.#seen.add(draw);
    for (const oldest of this.#seen) {
      if (this.#seen.size <= REMEMBERED) break;
      this.#seen.delete(oldest);
    }
    return true;
  }
}

export interface Expected {
  sent: GuestIdentity;
  /** Milliseconds since it was sent. */
  elapsedMs: number;
  /** Processes of the parent that had a fork hook at the freeze. */
  hooks: number;
  draws: Draws;
  /** Hooks of the same parent that have given evidence in a child: they have to in each. */
  evident: Set<string>;
}

/**
 * Compares what a child has read back with what it was sent.
 *
 * @throws UnprovenError naming the first field that is not right
 */
export function checkReceipt(read: IdentityReceipt, expected: Expected): void {
  const { sent, elapsedMs, draws } = expected;
  const refuse = (field: UnprovenField, reason: string) =>
    new UnprovenError(sent.vmId, field, `its ${field} ${reason}`);
  for (const field of ["hostname", "index", "vmId", "machineId", "bootId"] as const) {
    if (read[field] === sent[field]) continue;
    throw refuse(field, `is ${JSON.stringify(read[field])}, and should be ${JSON.stringify(sent[field])}`);
  }
  // A clock that was set and then read has gone on in between.
  const ahead = Number(read.realtimeNs - sent.realtimeNs) / 1e6;
  if (ahead <= 0 || ahead > elapsedMs + CLOCK_SLACK_MS) {
    throw refuse("realtimeNs", `is ${ahead} ms after the host's, ${elapsedMs} ms later`);
  }
  if (read.entropyBytes < sent.entropy.length) {
    throw refuse("entropyBytes", `are ${read.entropyBytes} of ${sent.entropy.length}`);
  }
  if (!read.reseeded) throw refuse("reseeded", "says that the kernel's generator was not");
  if (read.sshKey !== undefined && read.sshKey !== sent.sshKey?.public.trim()) {
    throw refuse("sshKey", "is not the one that it was given");
  }
  if (new Set(read.draw).size < LEAST_DIFFERENT_BYTES) throw refuse("draw", "is not random");
  if (!draws.add(Buffer.from(read.draw).toString("hex"))) {
    throw refuse("draw", "is a random number that another child has drawn, too");
  }
  checkHooks(read, expected, refuse);
}

function checkHooks(
  { hooks }: IdentityReceipt,
  { hooks: expected, draws, evident }: Expected,
  refuse: (field: UnprovenField, reason: string) => UnprovenError,
): void {
  if (hooks.length !== expected) throw refuse("hooks", `are ${hooks.length} of ${expected}`);
  const seen = new Set<string>();
  for (const { name, pid, ok, text } of hooks) {
    const who = `"${name}" (process ${pid})`;
    if (!ok) throw refuse("hooks", `failed: ${who}: ${text}`);
    if (seen.has(who)) throw refuse("hooks", `name one twice: ${who}`);
    seen.add(who);
    if (text === "") {
      if (evident.has(name)) throw refuse("hooks", `gave no evidence, as in other children: ${who}`);
      continue;
    }
    if (evident.size < MOST_HOOKS) evident.add(name);
    if (!draws.add(`${name} ${text}`)) {
      throw refuse("hooks", `gave evidence that another has given, too: ${who}`);
    }
  }
}
