import { randomBytes, randomUUID } from "node:crypto";
import type { GuestIdentity } from "../../guest-agent/protocol/mod.ts";

/** A fresh identity, as a host makes them. */
export function freshIdentity(fields: Partial<GuestIdentity> = {}): GuestIdentity {
  return {
    hostname: "child",
    index: 0,
    vmId: `vm-${randomBytes(6).toString("hex")}`,
    machineId: randomBytes(16).toString("hex"),
    bootId: randomUUID(),
    realtimeNs: BigInt(Date.now()) * 1_000_000n,
    entropy: randomBytes(64),
    ...fields,
  };
}
