import { describe, expect, test } from "bun:test";
import { verify } from "node:crypto";
import { FlurryError } from "../../errors/errors.ts";
import type { SignedReceipt } from "../../runtime/api/mod.ts";
import { FlurryClient } from "../../runtime/client/mod.ts";
import type { Proof } from "../../runtime/fork/child-watch.ts";
import { Receipts } from "../../runtime/gateway/receipts.ts";
import type { NewReceipt, ReceiptStore } from "../../runtime/jobs/ports.ts";
import type { ChildObserver, ProvenChild } from "../../runtime/jobs/task-runtime.ts";
import { receiptOf } from "../../runtime/workers/receipt.ts";
import { rejection } from "../support/agent-peer.ts";
import { GatewaySandbox, idleRuntime } from "../support/gateway-sandbox.ts";
import { proofOf } from "../support/proofs.ts";

function childOf(proof: Proof): ProvenChild {
  return { vm: proof.sent.vmId, receipt: () => receiptOf(proof) };
}

/** A gateway whose VMs are made up. */
async function openWithChildren(): Promise<{ gateway: GatewaySandbox; children: ChildObserver }> {
  const observers = new Set<ChildObserver>();
  const gateway = await GatewaySandbox.open({
    runtime: () => ({
      ...idleRuntime(),
      watchChildren: (observer) => {
        observers.add(observer);
        return { [Symbol.dispose]: () => void observers.delete(observer) };
      },
    }),
  });
  const [children] = observers;
  return { gateway, children: children! };
}

describe("GET /v1/vms/{id}/receipt", () => {
  test("shows what a VM has proven, signed, from the moment at which it has", async () => {
    const { gateway, children } = await openWithChildren();
    await using _gateway = gateway;
    const proof = proofOf("vm-0123456789ab", 3);
    children.proven(childOf(proof));
    const signed = await gateway.json<SignedReceipt>("/v1/vms/vm-0123456789ab/receipt");
    expect(signed.receipt).toEqual(receiptOf(proof));
    expect(JSON.parse(signed.payload)).toEqual(signed.receipt);
    const signature = Buffer.from(signed.signature, "base64");
    expect(verify(null, Buffer.from(signed.payload), signed.publicKey, signature)).toBe(true);
    expect(signed.receipt).toMatchObject({
      sent: { hostname: "child-3", index: 3, entropyBytes: 64, hooks: 1 },
      read: { vm: "vm-0123456789ab", hostname: "child-3", reseeded: true, hooks: [{ name: "app" }] },
      ...{ driftMs: 3_600_000, elapsedMs: 7, kernelMs: 4, hooksMs: 1 },
    });
    expect(signed.receipt.read.machineId).toBe(proof.sent.machineId);
    const client = new FlurryClient({ url: gateway.url });
    expect(await client.vms.receipt("vm-0123456789ab")).toEqual(signed);
  });

  test("tells nothing that was to stay secret", async () => {
    const { gateway, children } = await openWithChildren();
    await using _gateway = gateway;
    const proof = proofOf("vm-1");
    children.proven(childOf(proof));
    const text = await (await gateway.fetch("/v1/vms/vm-1/receipt")).text();
    for (const secret of [proof.sent.entropy, proof.read.draw]) {
      expect(text).not.toContain(Buffer.from(secret).toString("hex"));
      expect(text).not.toContain(Buffer.from(secret).toString("base64"));
    }
    expect(text).not.toContain("OPENSSH");
  });

  test("says what is not there, and what is no id", async () => {
    const { gateway } = await openWithChildren();
    await using _gateway = gateway;
    const unknown = await gateway.json("/v1/vms/vm-none/receipt", {}, 404);
    expect(unknown).toMatchObject({ code: "RECEIPT_NOT_FOUND", hint: expect.stringContaining("100000") });
    await gateway.json("/v1/vms/VM%20x/receipt", {}, 400);
  });

  test("keeps what comes in a burst", async () => {
    const { gateway, children } = await openWithChildren();
    await using _gateway = gateway;
    for (let index = 0; index < 500; index++) children.proven(childOf(proofOf(`vm-${index}`, index)));
    const last = await gateway.json<SignedReceipt>("/v1/vms/vm-499/receipt");
    expect(last.receipt.read.index).toBe(499);
    expect((await gateway.json<SignedReceipt>("/v1/vms/vm-0/receipt")).receipt.read.index).toBe(0);
  });
});

test("GET /metrics counts children that have not proven themselves, by what was wrong", async () => {
  const { gateway, children } = await openWithChildren();
  await using _gateway = gateway;
  children.unproven("draw");
  children.unproven("draw");
  children.unproven("answer");
  const text = await (await gateway.fetch("/metrics")).text();
  expect(text).toContain('flurry_children_unproven_total{field="draw"} 2');
  expect(text).toContain('flurry_children_unproven_total{field="answer"} 1');
  expect(text).toContain("flurry_receipts_lost_total 0");
});

describe("Receipts", () => {
  /** A store in memory; fails while it is told so. */
  function openReceipts() {
    const kept: NewReceipt[] = [];
    const lost: number[] = [];
    const state = { failing: false };
    const store: ReceiptStore = {
      add: async (receipts) => {
        if (state.failing) throw new FlurryError("NO_SPACE", "The disk is full");
        kept.push(...receipts);
      },
      find: async (vm) => {
        const found = kept.find((one) => one.vm === vm);
        return found && { ...found, signature: "", publicKey: "" };
      },
    };
    const timers: (() => void)[] = [];
    const receipts = new Receipts({
      store,
      metrics: { childUnproven: () => undefined, receiptsLost: (count) => void lost.push(count) },
      after: (_ms, callback) => {
        timers.push(callback);
        return { [Symbol.dispose]: () => undefined };
      },
    });
    return { receipts, kept, lost, state, timers };
  }

  test("does nothing in the turn of a fork, and stores what came together", async () => {
    const { receipts, kept, timers } = openReceipts();
    for (let index = 0; index < 450; index++) receipts.proven(childOf(proofOf(`vm-${index}`)));
    await Promise.resolve();
    expect(kept).toEqual([]);
    expect(timers).toHaveLength(1);
    timers[0]!();
    await receipts[Symbol.asyncDispose]();
    expect(kept.map(({ vm }) => vm)).toEqual(Array.from({ length: 450 }, (_, index) => `vm-${index}`));
    receipts.proven(childOf(proofOf("vm-later")));
    expect(timers).toHaveLength(2);
    timers[1]!();
    expect(await receipts.find("vm-later")).toMatchObject({ vm: "vm-later" });
  });

  test("counts what it loses when it cannot be stored, and goes on with the next ones", async () => {
    const { receipts, kept, lost, state, timers } = openReceipts();
    state.failing = true;
    for (let index = 0; index < 3; index++) receipts.proven(childOf(proofOf(`vm-${index}`)));
    timers[0]!();
    expect(await receipts.find("vm-0")).toBeUndefined();
    expect(lost).toEqual([3]);
    state.failing = false;
    receipts.proven(childOf(proofOf("vm-3")));
    timers[1]!();
    expect(await receipts.find("vm-3")).toBeDefined();
    expect(kept).toHaveLength(1);
  });

  test("loses what comes while 10000 wait, and never keeps a fork waiting", async () => {
    const { receipts, kept, lost, timers } = openReceipts();
    const proof = proofOf("vm-0");
    for (let index = 0; index < 10_005; index++) receipts.proven(childOf(proof));
    expect(lost).toEqual([1, 1, 1, 1, 1]);
    timers[0]!();
    await receipts[Symbol.asyncDispose]();
    expect(kept).toHaveLength(10_000);
  });

  test("is not kept from an answer by children that never end", async () => {
    const { receipts, timers } = openReceipts();
    let vms = 0;
    const receipt = () => {
      next();
      return receiptOf(proofOf("x"));
    };
    const next = (): void => receipts.proven({ vm: `vm-${++vms}`, receipt });
    next();
    const finding = receipts.find("vm-2");
    timers[0]!();
    while (timers.length < 2) await Promise.resolve();
    timers[1]!();
    expect(await finding).toMatchObject({ vm: "vm-2" });
    expect(timers).toHaveLength(3);
  });
});

test("A client is told by the code that there is no receipt", async () => {
  const { gateway } = await openWithChildren();
  await using _gateway = gateway;
  const error = await rejection(new FlurryClient({ url: gateway.url }).vms.receipt("vm-none"));
  expect(error.code).toBe("RECEIPT_NOT_FOUND");
});
