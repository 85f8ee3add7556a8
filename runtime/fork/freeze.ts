import { chmodSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { Descriptor } from "../../memserver/descriptor.ts";
import { deviceSections } from "../../memserver/device-stream.ts";
import { RAM_BLOCK } from "../vm/profile.ts";
import type { BootedVm } from "./boot.ts";
import { fingerprintOf } from "./fingerprint.ts";

/** A frozen VM: its descriptor, and its RAM as a file that nobody writes any more. */
export interface FrozenVm {
  descriptor: Descriptor;
  /** The memory image, in a tmpfs; the caller's to remove. */
  imagePath: string;
  /** Milliseconds in which the guest stood still before its state was complete. */
  pauseMs: number;
}

/**
 * Freezes a VM for good: brings the agent's channel to rest, stops the CPUs, saves the device state
 * and ends the QEMU process. Its RAM file is the memory image from then on.
 *
 * @param vm - booted with `shared` RAM; disposed on success
 * @throws FlurryError FREEZE_FAILED; AgentError AGENT_REFUSED while something runs through the agent.
 * The VM goes on when the agent refused.
 */
export async function freeze(vm: BootedVm, imageHash: string, signal?: AbortSignal): Promise<FrozenVm> {
  const { qemu, ramPath } = vm;
  if (!ramPath) throw new FlurryError("FREEZE_FAILED", "Cannot freeze a VM whose memory is not in a file");
  const { hooks } = await vm.agent.quiesce({ signal });
  // In the VM's own directory: QEMU, which writes it, may not write anywhere else.
  const statePath = join(qemu.dir, "devices");
  const began = performance.now();
  const frozenAt = Date.now();
  // Both at once: QEMU takes them in order, and the guest stands still for one round trip less.
  const stopped = qemu.qmp.execute("stop", {}, { signal });
  const saved = qemu.qmp.execute("xen-save-devices-state", { filename: statePath, live: false }, { signal });
  await settled([stopped, saved]);
  const pauseMs = performance.now() - began;
  const deviceState = deviceSections(await readFile(statePath));
  await rm(statePath);
  vm.keepRam();
  await vm[Symbol.asyncDispose]();
  if (vm.host.qemu.readOnlyRam) chmodSync(ramPath, 0o400);
  return {
    descriptor: {
      format: "flurry-descriptor",
      version: 3,
      frozenAt,
      fingerprint: fingerprintOf(vm.host, vm.profile, imageHash),
      deviceState,
      hooks,
      ram: { block: RAM_BLOCK, bytes: vm.profile.memMiB * 1024 * 1024 },
      lineage: { generation: 0, parent: null },
    },
    imagePath: ramPath,
    pauseMs,
  };
}

async function settled(commands: Promise<unknown>[]): Promise<void> {
  try {
    await Promise.all(commands);
  } catch (cause) {
    await Promise.allSettled(commands);
    if (codeOf(cause) === "ABORTED") throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("FREEZE_FAILED", `Cannot freeze the VM: ${reason}`, { cause });
  }
}
