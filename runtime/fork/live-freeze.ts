import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { Inheritance } from "../../guest-agent/protocol/mod.ts";
import { type Descriptor, descriptorHash, encodeDescriptor } from "../../memserver/descriptor.ts";
import { deviceSections } from "../../memserver/device-stream.ts";
import { systemClock } from "../clock.ts";
import type { Child } from "./child.ts";
import { nanoseconds } from "./identity.ts";
import { type Delta, RamMapping } from "./ram-mapping.ts";

/** Milliseconds in which a guest comes to rest; its hooks have 5 s of their own. */
const QUIESCE_MS = 15_000;

/** The state of a VM that went on. */
export interface LiveFreeze {
  descriptor: Descriptor;
  /** In which its RAM differs from the image that its base maps. */
  delta: Delta;
  /** Programs that run, and go on in its children. */
  inheritances: readonly Inheritance[];
  /** ms from the request to come to rest until all went on; processes run for the first part of it. */
  tookMs: number;
  /** ms for which the CPUs stood still. */
  stoppedMs: number;
}

/**
 * Takes the state of a child that goes on: its processes come to rest, its CPUs stop, device state and changed
 * pages are saved, and all go on. Its RAM is a private mapping, so nothing of it is anyone else's: it is a
 * copy-on-write child of its image before and after.
 *
 * @param atRest - called while nothing moves: what the caller knows of the VM then is as its children will find it
 * @throws FlurryError FORK_FAILED, ABORTED; AgentError when it does not come to rest, AGENT_CLOSED. The VM goes on
 * unless it has died.
 */
export async function freezeLive(
  child: Child,
  options: { atRest?: () => void; signal?: AbortSignal | undefined } = {},
): Promise<LiveFreeze> {
  const { signal } = options;
  const { qmp } = child;
  using mapping = RamMapping.open(child.pid, child.memBytes);
  const began = performance.now();
  const { hooks } = await child.agent.quiesce({ live: true, timeoutMs: QUIESCE_MS, signal });
  const frozenAt = Date.now();
  // In the VM's own directory: QEMU, which writes it, may not write anywhere else.
  const statePath = join(child.dir, "devices");
  const stopAt = performance.now();
  let isStopped = false;
  try {
    options.atRest?.();
    const inheritances = child.agent.inheritances();
    isStopped = true;
    // Both at once: QEMU takes them in order. Not with the signal: what is stopped has to go on.
    const stopped = qmp.execute("stop", {});
    const saved = qmp.execute("xen-save-devices-state", { filename: statePath, live: false });
    saved.catch(() => undefined);
    await stopped;
    const delta = mapping.changed();
    await saved;
    await qmp.execute("cont", {});
    isStopped = false;
    const stoppedMs = performance.now() - stopAt;
    child.agent.release({ realtimeNs: nanoseconds(systemClock.now()) });
    const tookMs = performance.now() - began;
    const deviceState = deviceSections(await readFile(statePath));
    const { origin } = child;
    return {
      descriptor: {
        ...origin.descriptor,
        ...{ frozenAt, deviceState, hooks },
        ram: { block: origin.descriptor.ram.block, bytes: origin.descriptor.ram.bytes },
        lineage: {
          generation: origin.descriptor.lineage.generation + 1,
          parent: descriptorHash(encodeDescriptor(origin.descriptor)),
        },
      },
      ...{ delta, inheritances, tookMs, stoppedMs },
    };
  } catch (cause) {
    if (isStopped) await qmp.execute("cont", {}).catch(() => undefined); // if that fails, it is dead
    if (child.agent.isOpen) child.agent.release({});
    if (codeOf(cause) === "ABORTED" || codeOf(cause) === "AGENT_CLOSED") throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("FORK_FAILED", `Cannot take the state of ${child.id}: ${reason}`, { cause });
  } finally {
    await rm(statePath, { force: true });
  }
}
