import { getLogger } from "@logtape/logtape";
import type { Clock } from "../../clock.ts";
import { systemClock } from "../../clock.ts";
import type { Child } from "../child.ts";
import type { Answer } from "./conversation.ts";
import { answerTo } from "./fork-calls.ts";
import type { Tree, TreePolicy } from "./tree.ts";
import { VmNode } from "./vm-node.ts";

const logger = getLogger(["flurry", "fork"]);

/**
 * A VM and all that were forked from it, and from those. The end of a VM is the end of those below it: nobody could
 * join them any more.
 */
export class VmTree implements Tree<VmNode>, AsyncDisposable {
  readonly policy: TreePolicy<VmNode>;
  readonly clock: Clock;
  readonly #nodes = new Set<VmNode>();
  /** Forked VMs, and places of tickets. */
  #taken = 0;

  constructor(policy: TreePolicy<VmNode>, clock: Clock = systemClock) {
    this.policy = policy;
    this.clock = clock;
  }

  get nodes(): readonly VmNode[] {
    return [...this.#nodes];
  }

  /** The VM that the tree begins with. `start` forks it with `onCall` of the node, and the node owns it then. */
  async root(start: (node: VmNode) => Promise<Child>): Promise<VmNode> {
    const node = new VmNode(this, { index: 0, generation: 0, parent: undefined, ticket: undefined });
    try {
      await node.start(() => start(node));
      return node;
    } catch (error) {
      await node.fail(error instanceof Error ? error.message : String(error));
      throw error;
    }
  }

  places(count: number): Disposable[] {
    const places: Disposable[] = [];
    const { maxVms = 256 } = this.policy;
    while (places.length < count && this.#taken < maxVms) {
      const place = this.policy.place();
      if (!place) break;
      this.#taken += 1;
      let held = true;
      places.push({
        [Symbol.dispose]: () => {
          if (!held) return;
          held = false;
          this.#taken -= 1;
          place[Symbol.dispose]();
        },
      });
    }
    return places;
  }

  add(node: VmNode): Disposable {
    this.#nodes.add(node);
    return { [Symbol.dispose]: () => void this.#nodes.delete(node) };
  }

  answerer(node: VmNode): Answer {
    return (request) => answerTo(node, request);
  }

  trouble(what: string, error: unknown): void {
    logger.warn("{what}: {error}", { what, error });
  }

  /** Ends all of its VMs; resolves when they are gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    const roots = this.nodes.filter(({ parent }) => !parent);
    await Promise.all(roots.map((node) => node.kill("its tree was ended")));
  }
}
