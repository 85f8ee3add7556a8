import type { Clock } from "../../clock.ts";
import type { Child } from "../../fork/child.ts";
import type { TreePolicy } from "../../fork/family/tree.ts";
import type { VmNode } from "../../fork/family/vm-node.ts";
import { VmTree } from "../../fork/family/vm-tree.ts";
import type { Families } from "../families.ts";
import { VmBudget } from "./budget.ts";
import type { VmInfo, VmOwner } from "./port.ts";

/** What a tree of VMs is for. */
export interface TreeInfo {
  owner: VmOwner;
  family: string;
  image: string;
  task: VmInfo["task"];
  checkpoint: string | null;
}

/** A VM that runs, with the tree that it is of. */
export interface FoundVm {
  node: VmNode;
  child: Child;
  info: TreeInfo;
  createdAt: number;
}

type Rules = Pick<TreePolicy, "denial" | "maxVms" | "maxGenerations" | "output" | "outputEnd">;

/** All trees of VMs of this host, and the places that they take. */
export class Forest {
  readonly #families: Families;
  readonly #clock: Clock;
  readonly #budget = new VmBudget();
  readonly #running = new Map<string, FoundVm>();

  constructor(families: Families, clock: Clock) {
    this.#families = families;
    this.#clock = clock;
  }

  /** A tree without any VM yet. */
  plant(info: TreeInfo, rules: Rules = {}): VmTree {
    return new VmTree(
      {
        ...rules,
        place: () => this.place(info),
        running: (node, child) => this.#ran(node, child, info),
      },
      this.#clock,
    );
  }

  /** A place for one more VM, of the owner's and of the host's memory; undefined when there is none. */
  place({ owner, family }: Pick<TreeInfo, "owner" | "family">): Disposable | undefined {
    const mine = this.#budget.take(owner.id, owner.vms);
    const room = mine && this.#families.admitShared(family);
    if (!room) {
      mine?.[Symbol.dispose]();
      return undefined;
    }
    return {
      [Symbol.dispose]: () => {
        mine[Symbol.dispose]();
        room[Symbol.dispose]();
      },
    };
  }

  /** Whether the owner may have one more. */
  mayHave({ id, vms }: VmOwner): boolean {
    using taken = this.#budget.take(id, vms);
    return taken !== undefined;
  }

  list(): FoundVm[] {
    return [...this.#running.values()];
  }

  find(id: string): FoundVm | undefined {
    return this.#running.get(id);
  }

  #ran(node: VmNode, child: Child, info: TreeInfo): Disposable {
    const measured = this.#families.measured(info.family, child);
    this.#running.set(child.id, { node, child, info, createdAt: this.#clock.now() });
    return {
      [Symbol.dispose]: () => {
        this.#running.delete(child.id);
        measured[Symbol.dispose]();
      },
    };
  }
}
