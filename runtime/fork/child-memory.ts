import type { FlurryError } from "../../errors/errors.ts";
import type { Shell } from "../vm/shell.ts";

/** How children of one parent come by their state and their memory. */
export interface ChildMemory {
  /**
   * Has a shell become a child: gives it its state, and sees to its memory. The guest runs at the RESUME
   * event, which may come before this resolves.
   *
   * @throws FlurryError MEMSERVER_FAILED, PAGES_UNAVAILABLE, ABORTED
   */
  give(shell: Shell, id: string, signal: AbortSignal | undefined): Promise<GivenMemory>;
}

/** The memory of one child for as long as the child lives. */
export interface GivenMemory {
  /** Resolves when the child can have no more of its memory: it must be ended. */
  readonly lost: Promise<FlurryError>;
  /**
   * The child is about to be ended.
   *
   * @param sound - nothing was wrong with it: what it needed will do for others too
   */
  release(sound: boolean): Promise<void>;
}

/** All of the memory is there: the shell has the image mapped. */
export class MappedMemory implements ChildMemory {
  readonly #stream: Uint8Array;

  /** @param stream - from `incomingStream` */
  constructor(stream: Uint8Array) {
    this.#stream = stream;
  }

  async give(shell: Shell): Promise<GivenMemory> {
    shell.load(this.#stream);
    return { lost: NEVER_LOST, release: async () => undefined };
  }
}

/** Of memory that is all there. */
export const NEVER_LOST = new Promise<never>(() => undefined);
