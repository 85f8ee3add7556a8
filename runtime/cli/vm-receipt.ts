import { createPublicKey, type KeyObject, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { FlurryError } from "../../errors/errors.ts";
import type { Receipt, SignedReceipt } from "../api/mod.ts";
import { formatMs, formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

export interface VmReceiptOptions extends GatewayOptions {
  publicKey?: string;
}

/** Of what is wrong with the installation. */
const INVALID_EXIT = 5;

/** `flurry vm receipt`: what a VM has proven, and whether the gateway vouches for it. */
export async function showReceipt(id: string, options: VmReceiptOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const key = options.publicKey === undefined ? undefined : readPublicKey(options.publicKey);
  const signed = await gatewayClient(options).vms.receipt(id, { signal: cliSignal() });
  const valid = isSigned(signed, key ?? createPublicKey(signed.publicKey));
  output.emit({ event: "receipt", valid, ...signed });
  output.print(receiptText(signed.receipt, Date.now()));
  const whose = key ? `the key in ${options.publicKey}` : "the key that the gateway shows";
  output.print(`Signature: ${valid ? "valid" : "NOT VALID"}, by ${whose}`);
  if (!valid) process.exitCode = INVALID_EXIT;
}

/** Whether the text was signed, and the receipt is what the text says. */
export function isSigned({ receipt, payload, signature }: SignedReceipt, key: KeyObject): boolean {
  if (!verify(null, Buffer.from(payload), key, Buffer.from(signature, "base64"))) return false;
  return JSON.stringify(sorted(JSON.parse(payload))) === JSON.stringify(sorted(receipt));
}

/** The same value with the keys of all objects in order. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, inner]) => [key, sorted(inner)]));
}

/** A receipt for people. @param now - ms since 1970 */
export function receiptText(receipt: Receipt, now: number): string {
  const { vm, sent, read, parent, driftMs, elapsedMs, kernelMs, hooksMs } = receipt;
  const rows = [
    ["host name", sent.hostname, read.hostname],
    ["index", String(sent.index), String(read.index)],
    ["VM", vm, read.vm],
    ["machine id", sent.machineId, read.machineId],
    ["boot id", sent.bootId, read.bootId],
    ["clock", timeText(sent.realtimeNs), timeText(read.realtimeNs)],
    [
      "entropy",
      `${sent.entropyBytes} bytes`,
      `${read.entropyBytes} bytes${read.reseeded ? ", reseeded" : ""}`,
    ],
    ["fork hooks", String(sent.hooks), read.hooks.map(({ name, pid }) => `${name} (${pid})`).join(", ")],
    ...(read.sshKey === undefined ? [] : [["SSH host key", "", read.sshKey]]),
  ];
  const columns = ["FIELD", "SENT", "READ BACK"].map((title) => ({ title }));
  const seconds = Math.max(0, Math.round((now - Date.parse(receipt.at)) / 1000));
  return [
    `${vm}, proven ${receipt.at} (${seconds} s ago)`,
    `Parent: image ${parent.image}, frozen ${parent.frozenAt}; its clock was ${formatMs(driftMs)} behind`,
    `Took ${formatMs(elapsedMs)}: ${formatMs(kernelMs)} in the guest's agent, ${formatMs(hooksMs)} in hooks`,
    `Fork seen by the guest's kernel: ${read.vmGenId ? "yes" : "not by then"}`,
    "",
    formatTable(columns, rows),
  ].join("\n");
}

function timeText(nanoseconds: string): string {
  const fraction = nanoseconds.slice(-9).padStart(9, "0");
  const seconds = Number(nanoseconds.slice(0, -9));
  return new Date(seconds * 1000).toISOString().replace(".000Z", `.${fraction}Z`);
}

function readPublicKey(file: string): KeyObject {
  try {
    return createPublicKey(readFileSync(file));
  } catch (cause) {
    throw new FlurryError("BAD_ARGUMENT", `Cannot read a public key from "${file}"`, {
      cause,
      hint: "it has to be PEM, as `publicKey` of a receipt",
    });
  }
}
