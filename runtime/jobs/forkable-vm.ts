import type { FamilyAdmission } from "../fork/admission.ts";
import { VmTree } from "../fork/family/vm-tree.ts";
import { forkRetrying } from "../fork/fork-retrying.ts";
import type { Identity } from "../fork/identity.ts";
import type { Parent } from "../fork/parent.ts";
import { ForkOutputs } from "./fork-outputs.ts";
import type { OutputHandler, TaskVm } from "./task.ts";

/** Most VMs at a time that are forked of one task's. */
const FORKS_MAX = 64;

export interface ForkableOptions {
  identity: Identity;
  /** Gets what forked VMs print, too. */
  onOutput: OutputHandler;
  signal: AbortSignal;
}

/**
 * A child for a task, whose programs may fork it; those that they fork end with it.
 *
 * @param admission - has to have memory for each VM that is forked
 * @throws FlurryError as `forkRetrying`
 */
export async function forkableVm(
  parent: Parent,
  admission: FamilyAdmission,
  { identity, onOutput, signal }: ForkableOptions,
): Promise<TaskVm> {
  const outputs = new ForkOutputs(onOutput);
  const tree = new VmTree({
    place: () => admission.tryAcquireShared(),
    maxVms: FORKS_MAX,
    output: (node, stream, chunk) => outputs.write(node, stream, chunk),
    outputEnd: (node) => outputs.end(node),
  });
  const { child } = await tree.root((node) =>
    forkRetrying(parent, { identity, onCall: (call) => node.onCall(call), signal }),
  );
  return {
    ...{ id: child.id, agent: child.agent, times: child.times, memBytes: child.memBytes },
    privateBytes: () => child.privateBytes(),
    explain: (error) => child.explain(error),
    [Symbol.asyncDispose]: () => tree[Symbol.asyncDispose](),
  };
}
