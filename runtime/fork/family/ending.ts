/** Most bytes that a child may exit with. */
export const RESULT_MAX = 1024 * 1024;

/** A file that a child has left, where it is in its parent. */
export interface PassedFile {
  path: string;
  /** Bytes. */
  size: number;
}

/**
 * How a forked VM ended:
 * - `exited` of itself, with a status and a result
 * - `killed` by who had forked it, or because that one ended
 * - `died`: its VM ended otherwise
 * - `failed`: it did not start
 */
export type Ending =
  | { state: "exited"; status: number; result: Uint8Array; files: readonly PassedFile[] }
  | { state: "killed" | "died" | "failed"; reason: string };

/** What a program reads of it: status, bytes and files. */
export function told(ending: Ending): { status: number; bytes: Uint8Array; files: readonly PassedFile[] } {
  if (ending.state === "exited") return { status: ending.status, bytes: ending.result, files: ending.files };
  return { status: 255, bytes: Buffer.from(ending.reason.slice(0, RESULT_MAX / 4)), files: [] };
}
