import type { Clock } from "../../clock.ts";
import type { Child } from "../child.ts";
import type { Answer } from "./conversation.ts";

/** A VM of a tree, as others see it. */
export interface TreeVm {
  /** Its name, or "-" before it runs. */
  readonly vm: string;
  /** 0 for the root, else the id in its ticket, from 1 on. */
  readonly index: number;
  readonly generation: number;
  readonly parent: TreeVm | undefined;
  /** Name of the ticket that it was made with; undefined when the host has forked it. */
  readonly ticket: string | undefined;
}

/** What the VMs of one tree may do, and who hears of it. */
export interface TreePolicy<N extends TreeVm = TreeVm> {
  /** A place for one more VM: of the host's memory, and of what its owner may have. Undefined when there is none. */
  place(): Disposable | undefined;
  /** Why a process of this user may not call; undefined when it may. */
  denial?(uid: number): string | undefined;
  /** Most VMs of the tree at a time, its root not counted. @default 256 */
  maxVms?: number | undefined;
  /** Most generations below the root. @default 32 */
  maxGenerations?: number | undefined;
  /** What programs of a forked VM print, which they were started with in the VM above; held back while it is busy. */
  output?(node: N, stream: "stdout" | "stderr", chunk: Uint8Array): void | Promise<void>;
  /** All that a forked VM has printed was given to `output`. */
  outputEnd?(node: N): void | Promise<void>;
  /** A VM of the tree runs; disposed of at its end. */
  running?(node: N, child: Child): Disposable;
}

/** What a VM needs of its tree. */
export interface Tree<N extends TreeVm> {
  readonly policy: TreePolicy<N>;
  readonly clock: Clock;
  /** Up to `count` places; none when there is room for none. */
  places(count: number): Disposable[];
  /** A VM of it begins; disposed of at its end. */
  add(node: N): Disposable;
  /** Answers what programs of a VM ask. */
  answerer(node: N): Answer;
  /** Of what nobody waits for. */
  trouble(what: string, error: unknown): void;
}
