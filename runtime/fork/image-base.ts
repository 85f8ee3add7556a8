import type { Host } from "../vm/host.ts";
import type { MachineProfile } from "../vm/profile.ts";
import type { ShellPool } from "../vm/shell-pool.ts";
import type { ChildMemory } from "./child-memory.ts";

/** A memory image that is mapped, with the shells that wait for it: `Parent`. */
export interface MappedImage extends AsyncDisposable {
  readonly host: Host;
  readonly profile: MachineProfile;
  readonly imagePath: string;
  readonly shells: ShellPool;
  /** All of it, for a shell that has it mapped. */
  readonly mapped: ChildMemory;
}

/**
 * A memory image that VMs map, for as long as anyone may still start a child of it: counted holds, the last of which
 * gives it up. One that belongs to somebody else is never given up here.
 */
export class ImageBase {
  readonly parent: MappedImage;
  readonly #isOwned: boolean;
  #holds = 0;

  /** @param isOwned - whether it is disposed of with the last hold */
  constructor(parent: MappedImage, isOwned: boolean) {
    this.parent = parent;
    this.#isOwned = isOwned;
  }

  hold(): AsyncDisposable {
    this.#holds += 1;
    let held = true;
    return {
      [Symbol.asyncDispose]: async () => {
        if (!held) return;
        held = false;
        this.#holds -= 1;
        if (this.#holds === 0 && this.#isOwned) await this.parent[Symbol.asyncDispose]();
      },
    };
  }
}
