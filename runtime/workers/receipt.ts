import { createHash } from "node:crypto";
import type { Receipt } from "../api/mod.ts";
import type { Proof } from "../fork/child-watch.ts";

/** What is kept of a proof: of random numbers the hashes, and of an SSH key what is public. */
export function receiptOf({ sent, read, parent, hooks, sentAt, elapsedMs }: Proof): Receipt {
  const { hostname, index, machineId, bootId, realtimeNs, entropy } = sent;
  return {
    ...{ format: "flurry-receipt", version: 1, vm: sent.vmId, at: new Date(sentAt).toISOString() },
    parent: {
      image: parent.image,
      memory: parent.memory ?? null,
      frozenAt: new Date(parent.frozenAt).toISOString(),
    },
    sent: {
      ...{ hostname, index, machineId, bootId, realtimeNs: String(realtimeNs) },
      ...{ entropyBytes: entropy.length, entropySha256: sha256(entropy), hooks },
    },
    read: {
      ...{ vm: read.vmId, hostname: read.hostname, index: read.index },
      ...{ machineId: read.machineId, bootId: read.bootId, realtimeNs: String(read.realtimeNs) },
      ...{ entropyBytes: read.entropyBytes, reseeded: read.reseeded, drawSha256: sha256(read.draw) },
      vmGenId: read.vmGenId,
      ...(read.sshKey !== undefined && { sshKey: read.sshKey }),
      hooks: read.hooks.map(({ name, pid, text }) => ({ name, pid, evidence: text })),
    },
    driftMs: Number(realtimeNs - read.beforeNs) / 1e6,
    elapsedMs,
    kernelMs: read.kernelNs / 1e6,
    hooksMs: (read.tookNs - read.kernelNs) / 1e6,
  };
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
