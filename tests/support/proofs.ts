import { randomBytes } from "node:crypto";
import { systemClock } from "../../runtime/clock.ts";
import type { Proof } from "../../runtime/fork/child-watch.ts";
import { newIdentity } from "../../runtime/fork/identity.ts";

/** How an honest child of a parent with one hook, frozen an hour ago, has proven itself in 7 ms. */
export function proofOf(id: string, index = 0): Proof {
  const sent = newIdentity(id, { index, hostname: `child-${index}` }, systemClock);
  const { hostname, vmId, machineId, bootId, realtimeNs } = sent;
  return {
    sent,
    read: {
      ...{ hostname, index, vmId, machineId, bootId, realtimeNs: realtimeNs + 3000n },
      ...{ beforeNs: realtimeNs - 3_600_000_000_000n, entropyBytes: 64, reseeded: true, vmGenId: false },
      ...{ draw: randomBytes(32), sshKey: undefined, tookNs: 5_000_000, kernelNs: 4_000_000 },
      hooks: [{ name: "app", pid: 70, ok: true, text: randomBytes(8).toString("hex") }],
    },
    ...{ hooks: 1, sentAt: Date.now(), elapsedMs: 7 },
    parent: { image: "0123", memory: "ab".repeat(32), frozenAt: Date.now() - 3_600_000 },
  };
}
