import type { Context } from "hono";
import { FlurryError } from "../../errors/errors.ts";
import type { Checkpoint, Vm, VmForkResult } from "../api/mod.ts";
import type { CheckpointInfo, ForkOutcome, VmInfo, VmOwner, Vms } from "../workers/vms/port.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { isAdmin } from "./own-job.ts";
import { problemOf } from "./problem.ts";
import { ofVm } from "./vm-errors.ts";

/** @throws FlurryError VMS_UNSUPPORTED where the runtime has none */
export function vmsOf({ runtime }: Pick<GatewayContext, "runtime">): Vms {
  if (runtime.vms) return runtime.vms;
  throw new FlurryError("VMS_UNSUPPORTED", "What runs this gateway's tasks makes no VMs by hand");
}

/** Whose VMs and checkpoints the asker sees: undefined for all. */
export function whose({ var: { principal } }: Context<GatewayEnv>): string | undefined {
  return isAdmin(principal) ? undefined : principal.owner;
}

/** Whose VMs the asker makes. */
export function makerOf({ var: { principal } }: Context<GatewayEnv>): VmOwner {
  return { id: principal.owner, vms: principal.limits.vms };
}

/**
 * Whose that is which is made of a VM: its owner's, and counted so, also when an admin asks.
 *
 * @throws FlurryError VM_NOT_FOUND
 */
export async function ownerOfVm(
  context: Pick<GatewayContext, "runtime" | "store">,
  c: Context<GatewayEnv>,
  id: string,
): Promise<VmOwner> {
  const { owner } = vmsOf(context).get(id, whose(c));
  if (owner === c.var.principal.owner) return makerOf(c);
  return { id: owner, vms: (await context.store.keys.find(owner))?.limits.vms };
}

/**
 * A checkpoint that the asker may see: an own one, or to an admin any with that name.
 *
 * @throws FlurryError CHECKPOINT_NOT_FOUND
 */
export async function ownCheckpoint(
  context: Pick<GatewayContext, "runtime">,
  c: Context<GatewayEnv>,
  name: string,
): Promise<CheckpointInfo> {
  const all = (await vmsOf(context).checkpoints(whose(c))).filter((each) => each.name === name);
  const found = all.find(({ owner }) => owner === c.var.principal.owner) ?? all[0];
  if (found) return found;
  throw new FlurryError("CHECKPOINT_NOT_FOUND", `There is no checkpoint "${name}"`, {
    hint: "flurry vm checkpoints, or GET /v1/checkpoints, lists them",
  });
}

export function shownVm({ parent, checkpoint, task, createdAt, memBytes, heldBytes, ...vm }: VmInfo): Vm {
  return {
    ...vm,
    ...(parent !== null && { parent }),
    ...(checkpoint !== null && { checkpoint }),
    ...(task !== null && { task }),
    createdAt: new Date(createdAt).toISOString(),
    memoryBytes: memBytes,
    privateBytes: heldBytes,
  };
}

export function shownOutcome(outcome: ForkOutcome, requestId: string): VmForkResult {
  if (outcome.status === "fulfilled") return { status: "fulfilled", vm: shownVm(outcome.vm) };
  const { code, detail: message, hint } = problemOf(ofVm(outcome.error), requestId);
  return { status: "rejected", error: { code, message, ...(hint !== undefined && { hint }) } };
}

export function shownCheckpoint({ createdAt, memBytes, ...checkpoint }: CheckpointInfo): Checkpoint {
  return { ...checkpoint, createdAt: new Date(createdAt).toISOString(), memoryBytes: memBytes };
}
