import { getLogger } from "@logtape/logtape";
import type { Clock } from "../../clock.ts";
import { systemClock } from "../../clock.ts";
import type { Child } from "../child.ts";
import { VmNode } from "./vm-node.ts";

const logger = getLogger(["flurry", "fork"]);

/** What the VMs of one tree may do, and who hears of it. */
export interface TreePolicy {
  /** A place for one more VM: of the host's memory, and of what its owner may have. Undefined when there is none. */
  place(): Disposable | undefined;
  /** Why a process of this user may not call; undefined when it may. */
  denial?(uid: number): string | undefined;
  /** Most VMs of the tree at a time, its root not counted. @default 256 */
  maxVms?: number | undefined;
  /** Most generations below the root. @default 32 */
  maxGenerations?: number | undefined;
  /** What programs of a forked VM print, which they were started with in the VM above; held back while it is busy. */
  output?(node: VmNode, stream: "stdout" | "stderr", chunk: Uint8Array): void | Promise<void>;
  /** All that a forked VM has printed was given to `output`. */
  outputEnd?(node: VmNode): void | Promise<void>;
  /** A VM of the tree runs; disposed of at its end. */
  running?(node: VmNode, child: Child): Disposable;
}

/**
 * A VM and all that were forked from it, and from those. The end of a VM is the end of those below it: nobody could
 * join them any more.
 */
export class VmTree implements AsyncDisposable {
  readonly policy: TreePolicy;
  readonly clock: Clock;
  readonly #nodes = new Set<VmNode>();
  /** Forked VMs, and places of tickets. */
  #taken = 0;

  constructor(policy: TreePolicy, clock: Clock = systemClock) {
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

  /** Up to `count` places; none when there is room for none. */
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

  /** Of what nobody waits for. */
  trouble(what: string, error: unknown): void {
    logger.warn("{what}: {error}", { what, error });
  }

  /** Ends all of its VMs; resolves when they are gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    const roots = this.nodes.filter(({ parent }) => !parent);
    await Promise.all(roots.map((node) => node.kill("its tree was ended")));
  }
}
