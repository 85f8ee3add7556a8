import { describe, expect, test } from "bun:test";
import { encode } from "cbor-x";
import {
  checkFingerprint,
  type Descriptor,
  decodeDescriptor,
  descriptorHash,
  encodeDescriptor,
  MAX_DESCRIPTOR_BYTES,
} from "../../memserver/descriptor.ts";
import { rejection } from "../support/agent-peer.ts";

const HASH = "0123456789abcdef".repeat(4);
const descriptor: Descriptor = {
  format: "flurry-descriptor",
  version: 3,
  frozenAt: 1_750_000_000_000,
  fingerprint: {
    qemu: "QEMU emulator version 10.0.2",
    machine: "pc-q35-10.0",
    cpu: "max",
    accel: "tcg",
    cpus: 1,
    memBytes: 1 << 29,
    devices: HASH,
    image: "base",
    hostCpu: "",
  },
  deviceState: Uint8Array.of(4, 0, 1, 2, 0),
  hooks: 0,
  ram: { block: "ram0", bytes: 1 << 29, hash: HASH },
  lineage: { generation: 0, parent: null },
};

async function refusal(change: (value: Record<string, unknown>) => unknown) {
  const value = structuredClone(descriptor) as unknown as Record<string, unknown>;
  const bytes = encode(change(value) ?? value);
  return await rejection((async () => decodeDescriptor(bytes))());
}

describe("decodeDescriptor()", () => {
  test("reads what encodeDescriptor() wrote", () => {
    const read = decodeDescriptor(encodeDescriptor(descriptor));
    expect(read).toEqual({ ...descriptor, deviceState: expect.anything() });
    expect([...read.deviceState]).toEqual([...descriptor.deviceState]);
    expect(encodeDescriptor(read).equals(encodeDescriptor(descriptor))).toBe(true);
    expect(descriptorHash(encodeDescriptor(read))).toMatch(/^[0-9a-f]{64}$/);
  });

  test("reads a descriptor whose memory has not been hashed", () => {
    const { hash: _, ...ram } = descriptor.ram;
    expect(decodeDescriptor(encodeDescriptor({ ...descriptor, ram })).ram.hash).toBeUndefined();
  });

  test.each<[string, (value: Record<string, unknown>) => unknown]>([
    ["format", (value) => Object.assign(value, { format: "another" })],
    ["version", (value) => Object.assign(value, { version: 1 })],
    ["version", (value) => Object.assign(value, { version: 2 })],
    ["hooks", (value) => Object.assign(value, { hooks: undefined })],
    ["hooks", (value) => Object.assign(value, { hooks: -1 })],
    ["frozenAt", (value) => Object.assign(value, { frozenAt: -1 })],
    ["deviceState", (value) => Object.assign(value, { deviceState: new Uint8Array() })],
    ["deviceState", (value) => Object.assign(value, { deviceState: "text" })],
    ["ram.bytes", (value) => Object.assign(value, { ram: { block: "ram0", bytes: 0 } })],
    ["ram.hash", (value) => Object.assign(value, { ram: { block: "ram0", bytes: 1, hash: "abc" } })],
    ["fingerprint.cpus", (value) => Object.assign(value.fingerprint as object, { cpus: 1.5 }) && value],
    ["fingerprint.accel", (value) => Object.assign(value.fingerprint as object, { accel: "xen" }) && value],
    ["lineage.parent", (value) => Object.assign(value, { lineage: { generation: 1, parent: "x" } })],
    ["surplus", (value) => Object.assign(value, { surplus: 1 })],
    ["it", () => "a text"],
    ["it", () => [1, 2]],
  ])("names %s when it does not fit", async (field, change) => {
    const error = await refusal(change);
    expect(error.code).toBe("DESCRIPTOR_INVALID");
    expect(error.message).toContain(field);
  });

  test.each<[string, Uint8Array]>([
    ["nothing", new Uint8Array()],
    ["a cut end", encodeDescriptor(descriptor).subarray(0, -1)],
    ["bytes behind the end", Buffer.concat([encodeDescriptor(descriptor), Buffer.of(0)])],
    ["a list that claims 4 GiB", Buffer.from("9affffffff", "hex")],
    ["a text that claims 2^53 bytes", Buffer.from("7b001fffffffffffff", "hex")],
    ["100,000 lists in one another", Buffer.alloc(100_000, 0x81)],
    ["more than its largest size", new Uint8Array(MAX_DESCRIPTOR_BYTES + 1)],
  ])("refuses %s", async (_name, bytes) => {
    const error = await rejection((async () => decodeDescriptor(bytes))());
    expect(error.code).toBe("DESCRIPTOR_INVALID");
  });
});

describe("checkFingerprint()", () => {
  test("accepts a descriptor of this very machine", () => {
    expect(() => checkFingerprint(descriptor, { ...descriptor.fingerprint })).not.toThrow();
  });

  test.each(Object.keys(descriptor.fingerprint) as (keyof Descriptor["fingerprint"])[])(
    "names %s when it differs, and nothing else",
    async (field) => {
      const here = { ...descriptor.fingerprint, [field]: "something else" };
      const error = await rejection((async () => checkFingerprint(descriptor, here))());
      expect(error.code).toBe("FINGERPRINT_MISMATCH");
      expect(error.message).toContain(
        `${field} is "something else" here and "${descriptor.fingerprint[field]}" in the descriptor`,
      );
      expect(error.message.match(/ here and /g)).toHaveLength(1);
    },
  );
});
