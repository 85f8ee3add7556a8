import { cpus } from "node:os";
import type { Fingerprint } from "../../memserver/descriptor.ts";
import type { Host } from "../vm/host.ts";
import { cpuModel, deviceHash, type MachineProfile } from "../vm/profile.ts";

/**
 * What a VM of this profile has on this host that its children must have too.
 *
 * @param imageHash - content hash of the image whose root disk the VM has
 */
export function fingerprintOf(host: Host, profile: MachineProfile, imageHash: string): Fingerprint {
  return {
    qemu: host.qemu.version,
    machine: host.qemu.machine,
    cpu: cpuModel(profile.accel, host.qemu),
    accel: profile.accel,
    cpus: profile.cpus,
    memBytes: profile.memMiB * 1024 * 1024,
    devices: deviceHash(host.qemu, profile),
    image: imageHash,
    hostCpu: profile.accel === "kvm" ? (cpus()[0]?.model ?? "unknown") : "",
  };
}
