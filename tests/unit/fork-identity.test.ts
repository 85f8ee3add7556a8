import { describe, expect, test } from "bun:test";
import { randomBytes, randomUUID } from "node:crypto";
import type { GuestIdentity, HookReceipt, IdentityReceipt } from "../../guest-agent/protocol/mod.ts";
import { systemClock } from "../../runtime/clock.ts";
import { forkRetrying } from "../../runtime/fork/fork-retrying.ts";
import {
  checkReceipt,
  Draws,
  nanoseconds,
  newIdentity,
  UnprovenError,
  type UnprovenField,
} from "../../runtime/fork/identity.ts";
import { rejection } from "../support/agent-peer.ts";

const ID = "vm-0123456789ab";
const hook = (fields: Partial<HookReceipt> = {}): HookReceipt => ({
  ...{ name: "app", pid: 70, ok: true, text: randomBytes(16).toString("hex") },
  ...fields,
});

/** What an honest child of a parent with one hook reads back, 5 ms later. */
function honest(sent: GuestIdentity, changes: Partial<IdentityReceipt> = {}): IdentityReceipt {
  const { hostname, index, vmId, machineId, bootId, realtimeNs } = sent;
  return {
    ...{ hostname, index, vmId, machineId, bootId, realtimeNs: realtimeNs + 2_000n },
    ...{ beforeNs: realtimeNs - 3_600_000_000_000n, entropyBytes: 64, reseeded: true, vmGenId: false },
    ...{ draw: randomBytes(32), sshKey: undefined, hooks: [hook()], tookNs: 2000, kernelNs: 1000 },
    ...changes,
  };
}

function sentIdentity(): GuestIdentity {
  return newIdentity(ID, { index: 3, hostname: "the-third" }, systemClock);
}

describe("newIdentity()", () => {
  test("gives no two children anything in common but what was asked for", () => {
    const made = Array.from({ length: 64 }, sentIdentity);
    const values = (value: (identity: GuestIdentity) => string) => new Set(made.map(value)).size;
    expect(values(({ machineId }) => machineId)).toBe(64);
    expect(values(({ bootId }) => bootId)).toBe(64);
    expect(values(({ entropy }) => Buffer.from(entropy).toString("hex"))).toBe(64);
    expect(values(({ sshKey }) => sshKey!.private)).toBe(64);
    expect(values(({ sshKey }) => sshKey!.public)).toBe(64);
    expect(made[0]).toMatchObject({ hostname: "the-third", index: 3, vmId: ID });
    expect(made[0]!.machineId).toMatch(/^[0-9a-f]{32}$/);
    expect(made[0]!.bootId).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
    expect(made[0]!.entropy).toHaveLength(64);
  });

  test("has the time of its clock, to the microsecond", () => {
    const clock = { now: () => 1_750_000_000_123.456, monotonic: () => 0 };
    const { realtimeNs } = newIdentity(ID, { index: 0, hostname: "x" }, clock);
    expect(realtimeNs).toBe(1_750_000_000_123_456_000n);
    expect(nanoseconds(0.5)).toBe(500_000n);
  });
});

describe("checkReceipt()", () => {
  const check = (change: (sent: GuestIdentity) => Partial<IdentityReceipt>, elapsedMs = 5) => {
    const sent = sentIdentity();
    checkReceipt(honest(sent, change(sent)), {
      sent,
      elapsedMs,
      hooks: 1,
      draws: new Draws(),
      evident: new Set<string>(),
    });
  };

  test("accepts what an honest child reads back", () => {
    check(() => ({}));
    check(({ sshKey }) => ({ sshKey: sshKey!.public.trim(), vmGenId: true }));
    check(({ realtimeNs }) => ({ realtimeNs: realtimeNs + 1_004_000_000n }));
    check(() => ({ hooks: [hook({ text: "" })] }));
  });

  test.each<[string, UnprovenField, (sent: GuestIdentity) => Partial<IdentityReceipt>]>([
    ["the parent's host name", "hostname", () => ({ hostname: "parent" })],
    ["no host name", "hostname", () => ({ hostname: "" })],
    ["a sibling's index", "index", () => ({ index: 4 })],
    ["a sibling's id", "vmId", () => ({ vmId: "vm-ba9876543210" })],
    ["no id", "vmId", () => ({ vmId: "" })],
    ["the parent's machine id", "machineId", () => ({ machineId: "0".repeat(32) })],
    ["no machine id", "machineId", () => ({ machineId: "" })],
    ["the parent's boot id", "bootId", () => ({ bootId: randomUUID() })],
    ["no boot id", "bootId", () => ({ bootId: "" })],
    ["the time of the freeze", "realtimeNs", ({ realtimeNs }) => ({ realtimeNs: realtimeNs - 1n })],
    ["no time", "realtimeNs", () => ({ realtimeNs: 0n })],
    ["the very time that it was sent", "realtimeNs", ({ realtimeNs }) => ({ realtimeNs })],
    ["a time to come", "realtimeNs", ({ realtimeNs: now }) => ({ realtimeNs: now + 1_006_000_000n })],
    ["no entropy", "entropyBytes", () => ({ entropyBytes: 0 })],
    ["less entropy than it was sent", "entropyBytes", () => ({ entropyBytes: 63 })],
    ["no reseed", "reseeded", () => ({ reseeded: false })],
    ["a draw of zeros", "draw", () => ({ draw: new Uint8Array(32) })],
    ["a draw of few values", "draw", () => ({ draw: Uint8Array.from({ length: 32 }, (_, at) => at % 11) })],
    ["another SSH key", "sshKey", () => ({ sshKey: "ssh-ed25519 AAAA other" })],
    ["no hook", "hooks", () => ({ hooks: [] })],
    ["a hook too many", "hooks", () => ({ hooks: [hook(), hook({ pid: 71 })] })],
    ["a hook that failed", "hooks", () => ({ hooks: [hook({ ok: false, text: "no" })] })],
  ])("refuses %s and names %s", async (_what, field, change) => {
    const error = await rejection((async () => check(change))());
    expect(error).toBeInstanceOf(UnprovenError);
    expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field, id: ID });
    expect(error.message).toStartWith(`Child ${ID} was killed: its ${field} `);
  });

  test("refuses hooks that name one twice, in place of another", async () => {
    const sent = sentIdentity();
    const read = honest(sent, { hooks: [hook(), hook()] });
    const expected = { sent, elapsedMs: 5, hooks: 2, draws: new Draws(), evident: new Set<string>() };
    const error = await rejection((async () => checkReceipt(read, expected))());
    expect(error).toMatchObject({ field: "hooks" });
    expect(error.message).toContain('name one twice: "app" (process 70)');
  });

  test.each<[UnprovenField, (first: IdentityReceipt) => Partial<IdentityReceipt>]>([
    ["draw", ({ draw }) => ({ draw })],
    ["hooks", ({ hooks }) => ({ hooks })],
  ])("refuses a child whose %s is that of another child", async (field, change) => {
    const draws = new Draws();
    const evident = new Set<string>();
    const first = sentIdentity();
    const receipt = honest(first);
    checkReceipt(receipt, { sent: first, elapsedMs: 5, hooks: 1, draws, evident });
    const sent = sentIdentity();
    const second = honest(sent, change(receipt));
    const error = await rejection(
      (async () => checkReceipt(second, { sent, elapsedMs: 5, hooks: 1, draws, evident }))(),
    );
    expect(error).toMatchObject({ field });
  });

  test("refuses a hook without evidence if it has given some in another child", async () => {
    const common = { elapsedMs: 5, hooks: 1, draws: new Draws(), evident: new Set<string>() };
    const receipt = (text: string) => {
      const sent = sentIdentity();
      checkReceipt(honest(sent, { hooks: [hook({ text })] }), { sent, ...common });
    };
    receipt("");
    receipt("0123");
    expect(await rejection((async () => receipt(""))())).toMatchObject({ field: "hooks" });
  });

  test("does not take the same for two hooks of different names", () => {
    const text = "0123";
    const sent = sentIdentity();
    const read = honest(sent, { hooks: [hook({ text }), hook({ name: "other", text })] });
    checkReceipt(read, { sent, elapsedMs: 5, hooks: 2, draws: new Draws(), evident: new Set<string>() });
  });
});

test("Draws remembers the last 4096, and no more", () => {
  const draws = new Draws();
  for (let draw = 0; draw < 4097; draw++) expect(draws.add(String(draw))).toBe(true);
  expect(draws.add("4096")).toBe(false);
  expect(draws.add("1")).toBe(false);
  expect(draws.add("0")).toBe(true);
});

describe("UnprovenError.of()", () => {
  test.each([
    ["AGENT_TIMEOUT", "answer"],
    ["QMP_TIMEOUT", "answer"],
    ["AGENT_REFUSED", "step"],
    ["AGENT_PROTOCOL", "channel"],
    ["AGENT_CLOSED", "channel"],
  ])("names what %s means", (code, field) => {
    const cause = Object.assign(new Error("Something"), { code });
    expect(UnprovenError.of(ID, cause)).toMatchObject({ field, cause, message: expect.stringContaining(ID) });
  });
});

describe("forkRetrying()", () => {
  const identity = { index: 0, hostname: "x" };
  const refusal = new UnprovenError(ID, "draw", "its draw is not random");
  const parentOf = (...results: unknown[]) => {
    const forks: unknown[] = [];
    const fork = async (options: unknown) => {
      forks.push(options);
      const result = results[forks.length - 1];
      if (result instanceof Error) throw result;
      return result as never;
    };
    return { parent: { fork }, forks };
  };

  test("forks another child in place of one that is not proven", async () => {
    const { parent, forks } = parentOf(refusal, refusal, "a child");
    expect(await forkRetrying(parent, { identity })).toBe("a child" as never);
    expect(forks).toEqual([{ identity }, { identity }, { identity }]);
  });

  test("gives up after the third", async () => {
    const { parent, forks } = parentOf(refusal, refusal, refusal, "a child");
    expect(await rejection(forkRetrying(parent, { identity }))).toBe(refusal);
    expect(forks).toHaveLength(3);
  });

  test("takes any other failure for what it is, and an abort", async () => {
    const other = parentOf(new Error("Another"), "a child");
    expect((await rejection(forkRetrying(other.parent, { identity }))).message).toBe("Another");
    const aborted = parentOf(refusal, "a child");
    const signal = AbortSignal.abort();
    expect(await rejection(forkRetrying(aborted.parent, { identity, signal }))).toBe(refusal);
  });
});
