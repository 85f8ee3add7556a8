import { randomBytes } from "node:crypto";
import type { Descriptor } from "../../memserver/descriptor.ts";
import { Child } from "./child.ts";
import type { ChildMemory } from "./child-memory.ts";
import { tellProven, tellUnproven } from "./child-watch.ts";
import { DeltaMemory } from "./delta-memory.ts";
import { flatImage } from "./flat-image.ts";
import { UnprovenError } from "./identity.ts";
import { ImageBase } from "./image-base.ts";
import type { LiveFreeze } from "./live-freeze.ts";
import { type ForkOptions, Parent } from "./parent.ts";

/**
 * Most bytes of changed pages that each child gets for itself. A VM with more has an image of its own made, which
 * all of them share and from which its children's changes are counted anew. Copying an image costs some 150 ms.
 */
export const DELTA_MAX_BYTES = 32 * 1024 * 1024;

/** The state of a VM at a moment, to start children of: an image that somebody maps already, and what changed since. */
export class Generation implements AsyncDisposable {
  readonly descriptor: Descriptor;
  /** Programs that ran, and go on in its children. */
  readonly inheritances: LiveFreeze["inheritances"];
  /** ms for which the CPUs of the VM stood still. */
  readonly stoppedMs: number;
  /** Bytes of what its children get, or of the pages that its image has anew. */
  readonly deltaBytes: number;
  /** Undefined when there is an image with them. */
  readonly #delta: LiveFreeze["delta"] | undefined;
  readonly #base: ImageBase;
  readonly #hold: AsyncDisposable;
  readonly #memory: ChildMemory | undefined;
  readonly #evident = new Set<string>();

  private constructor(freeze: LiveFreeze, base: ImageBase, memory: ChildMemory | undefined) {
    this.descriptor = freeze.descriptor;
    this.inheritances = freeze.inheritances;
    this.stoppedMs = freeze.stoppedMs;
    this.deltaBytes = freeze.delta.data.length;
    this.#delta = memory && freeze.delta;
    this.#base = base;
    this.#hold = base.hold();
    this.#memory = memory;
  }

  /**
   * Makes children possible of what `freezeLive` took of a child.
   *
   * @throws FlurryError NO_SPACE, ABORTED
   */
  static async of(child: Child, freeze: LiveFreeze, signal?: AbortSignal): Promise<Generation> {
    const { base } = child.origin;
    if (freeze.delta.data.length <= DELTA_MAX_BYTES) {
      return new Generation(freeze, base, new DeltaMemory(freeze.descriptor, freeze.delta));
    }
    const { host, profile, imagePath } = base.parent;
    const image = await flatImage(host, imagePath, freeze.delta, signal);
    const parent = new Parent({
      ...{ host, profile, descriptor: freeze.descriptor, imagePath: image.path },
      held: image,
    });
    return new Generation(freeze, new ImageBase(parent, true), undefined);
  }

  /** Where its image is, and what it has in place of that one's pages. */
  get image(): { path: string; delta: LiveFreeze["delta"] | undefined } {
    return { path: this.#base.parent.imagePath, delta: this.#delta };
  }

  /**
   * Forks one child. Programs that ran in the frozen VM go on in it when `begin` of each of them has been called.
   *
   * @throws FlurryError as `Parent.fork`
   */
  async fork(options: ForkOptions): Promise<Child> {
    const { parent } = this.#base;
    const { host } = parent;
    const began = performance.now();
    const taken = await parent.shells.take(options.signal);
    const { fingerprint, ram, frozenAt, hooks } = this.descriptor;
    try {
      const child = await Child.start({
        ...options,
        // Its agent is that of a VM which has been looked at.
        secondLook: options.secondLook ?? false,
        ...{ taken, hooks, evident: this.#evident },
        shellMs: performance.now() - began,
        memory: this.#memory ?? parent.mapped,
        id: `vm-${randomBytes(6).toString("hex")}`,
        memBytes: ram.bytes,
        origin: { base: this.#base, descriptor: this.descriptor },
        inheritances: this.inheritances,
      });
      const of = { image: fingerprint.image, memory: ram.hash, frozenAt };
      tellProven(host, { ...child.proof, parent: of }, child);
      return child;
    } catch (error) {
      if (error instanceof UnprovenError) tellUnproven(host, error);
      throw error;
    }
  }

  /** Children go on. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#hold[Symbol.asyncDispose]();
  }
}
