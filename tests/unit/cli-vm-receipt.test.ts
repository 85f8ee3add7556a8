import { describe, expect, test } from "bun:test";
import { generateKeyPairSync, sign } from "node:crypto";
import type { Receipt, SignedReceipt } from "../../runtime/api/mod.ts";
import { isSigned, receiptText } from "../../runtime/cli/vm-receipt.ts";
import { receiptOf } from "../../runtime/workers/receipt.ts";
import { proofOf } from "../support/proofs.ts";

const { privateKey, publicKey } = generateKeyPairSync("ed25519");

function signed(receipt: Receipt): SignedReceipt {
  const payload = JSON.stringify(receipt);
  const signature = sign(null, Buffer.from(payload), privateKey).toString("base64");
  const pem = publicKey.export({ type: "spki", format: "pem" }).toString();
  return { receipt, payload, signature, publicKey: pem };
}

describe("isSigned()", () => {
  const whole = signed(receiptOf(proofOf("vm-1")));

  test("accepts a receipt as it was signed, in whatever order its fields come", () => {
    expect(isSigned(whole, publicKey)).toBe(true);
    const turned = Object.fromEntries(Object.entries(whole.receipt).reverse()) as Receipt;
    expect(isSigned({ ...whole, receipt: turned }, publicKey)).toBe(true);
  });

  test.each<[string, SignedReceipt]>([
    ["a receipt that says something else", { ...whole, receipt: { ...whole.receipt, vm: "vm-2" } }],
    ["another text", { ...whole, payload: whole.payload.replace("vm-1", "vm-2") }],
    ["another signature", { ...whole, signature: signed(receiptOf(proofOf("vm-1"))).signature }],
    ["no signature", { ...whole, signature: "" }],
  ])("refuses %s", (_what, changed) => {
    expect(isSigned(changed, publicKey)).toBe(false);
  });

  test("refuses another installation's", () => {
    expect(isSigned(whole, generateKeyPairSync("ed25519").publicKey)).toBe(false);
  });
});

test("receiptText() shows what was sent beside what was read back, with times to the nanosecond", () => {
  const receipt = receiptOf(proofOf("vm-1", 4));
  receipt.at = "2026-01-31T12:00:00.000Z";
  receipt.sent.realtimeNs = "1769860800000000000";
  receipt.read.realtimeNs = "1769860800000003000";
  const text = receiptText(receipt, Date.parse("2026-01-31T12:01:30.000Z"));
  expect(text).toContain("vm-1, proven 2026-01-31T12:00:00.000Z (90 s ago)");
  expect(text).toMatch(/its clock was .*h|its clock was 3600/);
  expect(text).toMatch(/^host name +child-4 +child-4$/m);
  expect(text).toMatch(/^clock +2026-01-31T12:00:00\.000000000Z +2026-01-31T12:00:00\.000003000Z$/m);
  expect(text).toMatch(/^entropy +64 bytes +64 bytes, reseeded$/m);
  expect(text).toMatch(/^fork hooks +1 +app \(70\)$/m);
  expect(text).not.toContain("SSH");
  expect(receiptText({ ...receipt, read: { ...receipt.read, sshKey: "ssh-ed25519 AA" } }, 0)).toContain(
    "ssh-ed25519 AA",
  );
});
