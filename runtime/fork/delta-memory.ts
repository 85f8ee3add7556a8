import type { Descriptor } from "../../memserver/descriptor.ts";
import { deltaStream } from "../../memserver/device-stream.ts";
import type { Shell } from "../vm/shell.ts";
import { type ChildMemory, type GivenMemory, NEVER_LOST } from "./child-memory.ts";
import type { Delta } from "./ram-mapping.ts";

/**
 * Memory of a later generation: the shell has the image below mapped, and gets the pages that have changed since with
 * its device state. So waiting shells serve all generations of a family.
 */
export class DeltaMemory implements ChildMemory {
  readonly #stream: Uint8Array;

  constructor({ fingerprint, deviceState, ram }: Descriptor, delta: Delta) {
    this.#stream = deltaStream(fingerprint.machine, deviceState, ram, delta);
  }

  async give(shell: Shell): Promise<GivenMemory> {
    shell.load(this.#stream);
    return { lost: NEVER_LOST, release: async () => undefined };
  }
}
