import type { Parent } from "./parent.ts";

/**
 * A memory image that VMs map, for as long as anyone may still start a child of it: counted holds, the last of which
 * gives it up. One that belongs to somebody else is never given up here.
 */
export class ImageBase {
  readonly parent: Parent;
  readonly #isOwned: boolean;
  #holds = 0;

  /** @param isOwned - whether it is disposed of with the last hold */
  constructor(parent: Parent, isOwned: boolean) {
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
