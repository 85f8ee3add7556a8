import type { Child } from "./child.ts";
import { UnprovenError } from "./identity.ts";
import type { ForkOptions } from "./parent.ts";

/** Children of which one has to prove who it is. Jobs and routers have bounds of their own. */
const MOST_CHILDREN = 3;

/**
 * Forks a child, and another one in place of one that has not proven who it is: up to 3.
 *
 * @throws FlurryError as `Parent.fork`; CHILD_UNPROVEN of the last one
 */
export async function forkRetrying(
  parent: { fork(options: ForkOptions): Promise<Child> },
  options: ForkOptions,
): Promise<Child> {
  for (let left = MOST_CHILDREN - 1; ; left--) {
    try {
      return await parent.fork(options);
    } catch (error) {
      if (!(error instanceof UnprovenError) || left === 0 || options.signal?.aborted) throw error;
    }
  }
}
