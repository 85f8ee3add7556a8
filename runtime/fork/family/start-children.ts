import pLimit from "p-limit";
import { codeOf } from "../../../errors/errors.ts";
import { forkRetrying } from "../fork-retrying.ts";
import type { Snapshot } from "./snapshot.ts";
import { VmNode } from "./vm-node.ts";

/** Children of one fork that are started at the same time: more would only wait for each other. */
const AT_ONCE = 8;

/**
 * Starts children of a snapshot: they are nodes at once, and VMs when they have proven who they are.
 *
 * @param places - one for each, given back at its end
 * @param first - what the call that forks is answered in a child
 */
export function startChildren(
  parent: VmNode,
  snapshot: Promise<Snapshot>,
  {
    places,
    ticket,
    first,
  }: { places: readonly Disposable[]; ticket?: string; first?: (index: number) => string },
): VmNode[] {
  const limit = pLimit(AT_ONCE);
  return places.map((place, at) => {
    const index = at + 1;
    const node = new VmNode(parent.tree, { index, generation: parent.generation + 1, parent, ticket });
    node.use(place);
    void limit(() => start(node, snapshot, first?.(index)));
    return node;
  });
}

async function start(node: VmNode, coming: Promise<Snapshot>, first: string | undefined): Promise<void> {
  try {
    const snapshot = await coming;
    await node.start(() =>
      forkRetrying(snapshot.generation, {
        identity: { index: node.index, hostname: hostNameOf(node) },
        onCall: (call) => node.onCall(call, snapshot, first),
        signal: node.stopped,
      }),
    );
    if (node.ticket !== undefined) node.endWithPrograms();
  } catch (error) {
    if (codeOf(error) === "ABORTED" && node.stopped.aborted) return;
    await node.fail(error instanceof Error ? error.message : String(error));
  }
}

/** The root's, and the way from it: `task-0-3-1`. */
function hostNameOf(node: VmNode): string {
  const way: number[] = [];
  for (let at = node; at.parent; at = at.parent) way.unshift(at.index);
  return `${node.rootHostname.slice(0, 40)}-${way.join("-")}`.slice(0, 63);
}
