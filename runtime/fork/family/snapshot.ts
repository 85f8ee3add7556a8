import type { Generation } from "../generation.ts";

/**
 * What was under way in a program's call when its VM was frozen:
 * - `idle`: nothing
 * - `pending`: an answer was awaited
 * - `reading`: a part of a request had come
 */
export type CallState = "idle" | "pending" | "reading";

/** A VM's state that children can be made of, and what its programs were asking for. */
export interface Snapshot {
  generation: Generation;
  /** By the ids of the calls. */
  calls: ReadonlyMap<number, CallState>;
  /** The call that is answered in each child. @default none: the host forks */
  caller?: number | undefined;
}
